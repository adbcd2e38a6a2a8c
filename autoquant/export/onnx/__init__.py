"""How does a packed model become one ONNX file that unpacks itself when a session loads?

graph.py writes nodes, store.py packs rows and unpacks them in the graph, weights.py and model.py say what the model is,
fold.py takes out what was pruned, encoder.py draws the model, exporter.py writes the file and runs it.
"""

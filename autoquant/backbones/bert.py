"""BERT and its like (MiniLM, bge, ...): `BertForSequenceClassification`."""

from autoquant.backbones.base import Backbone

BERT = Backbone(
    layer="bert.encoder.layer.{}",
    layer_modules={
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "ffn_in": "intermediate.dense",
        "ffn_out": "output.dense",
    },
    outer_modules={"pooler": "bert.pooler.dense", "classifier": "classifier"},
    embedding_modules={
        "word_embedding": "bert.embeddings.word_embeddings",
        "position_embedding": "bert.embeddings.position_embeddings",
        "type_embedding": "bert.embeddings.token_type_embeddings",
    },
    embedding_norm="bert.embeddings.LayerNorm",
    layer_norms={"attention_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"},
    inputs=("input_ids", "token_type_ids", "attention_mask"),
)

"""DistilBERT: `DistilBertForSequenceClassification`, without token types and without a pooler of its own."""

from autoquant.backbones.base import Backbone

DISTILBERT = Backbone(
    layer="distilbert.transformer.layer.{}",
    layer_modules={
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "attention_output": "attention.out_lin",
        "ffn_in": "ffn.lin1",
        "ffn_out": "ffn.lin2",
    },
    outer_modules={"pooler": "pre_classifier", "classifier": "classifier"},
    embedding_modules={
        "word_embedding": "distilbert.embeddings.word_embeddings",
        "position_embedding": "distilbert.embeddings.position_embeddings",
    },
    embedding_norm="distilbert.embeddings.LayerNorm",
    layer_norms={"attention_norm": "sa_layer_norm", "ffn_norm": "output_layer_norm"},
    pooler_activation="relu",
)

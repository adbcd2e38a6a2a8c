"""RoBERTa: `RobertaForSequenceClassification`, whose head holds the pooler; positions start after the padding token's id."""

from autoquant.backbones.base import Backbone

ROBERTA = Backbone(
    layer="roberta.encoder.layer.{}",
    layer_modules={
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "ffn_in": "intermediate.dense",
        "ffn_out": "output.dense",
    },
    outer_modules={"pooler": "classifier.dense", "classifier": "classifier.out_proj"},
    embedding_modules={
        "word_embedding": "roberta.embeddings.word_embeddings",
        "position_embedding": "roberta.embeddings.position_embeddings",
        "type_embedding": "roberta.embeddings.token_type_embeddings",
    },
    embedding_norm="roberta.embeddings.LayerNorm",
    layer_norms={"attention_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"},
    positions_after_padding=True,
)

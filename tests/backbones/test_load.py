"""Models from directories: with a head or bare, cut to fewer positions, and what is wrong in one line."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForSequenceClassification

from architectures import save_tiny, tiny
from autoquant.backbones import BACKBONES
from autoquant.backbones.load import ModelSource, load_tokenizer, open_model
from autoquant.core.errors import ModelError

LABELS = ("negative", "positive")
POSITIONS = "bert.embeddings.position_embeddings.weight"


def opened(
    path: Path, labels: tuple[str, ...] | None = LABELS, max_length: int = 32, trim_positions: bool = False
) -> ModelSource:
    return open_model(str(path), labels, max_length, trim_positions)


@pytest.fixture
def broken(tiny_classifier_dir: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_classifier_dir, tmp_path / "broken"))


def test_a_classifier_keeps_its_head(tiny_classifier_dir: Path, tiny_classifier: BertForSequenceClassification) -> None:
    source = opened(tiny_classifier_dir)
    model, has_head = source.load(seed=0)
    assert has_head
    assert all(torch.equal(tensor, tiny_classifier.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert source.shapes() == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.label2id == {"negative": 0, "positive": 1}
    assert model.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("labels", [("a", "b", "c"), None])
def test_a_bare_encoder_gets_a_head_of_the_task(
    tiny_model_dir: Path, tiny_classifier: BertForSequenceClassification, labels: tuple[str, ...] | None
) -> None:
    source = opened(tiny_model_dir, labels)
    (first, has_head), (again, _), (other, _) = (source.load(seed) for seed in (0, 0, 1))
    assert not has_head
    assert first.classifier.weight.shape == (len(labels) if labels else 1, 32)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert torch.equal(first.get_parameter(POSITIONS), tiny_classifier.get_parameter(POSITIONS))
    assert first.config.problem_type == ("single_label_classification" if labels else "regression")


def test_weights_become_float32(tiny_classifier: BertForSequenceClassification, tiny_classifier_dir: Path, broken: Path) -> None:
    half = BertForSequenceClassification.from_pretrained(tiny_classifier_dir, dtype=torch.bfloat16)
    half.save_pretrained(broken)
    model, _ = opened(broken).load(0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("trim", [True, False])
def test_positions_are_cut_only_if_asked(tiny_classifier_dir: Path, trim: bool) -> None:
    source = opened(tiny_classifier_dir, max_length=16, trim_positions=trim)
    model, _ = source.load(0)
    whole, _ = opened(tiny_classifier_dir).load(0)
    rows = 16 if trim else 64
    assert source.shapes()[POSITIONS] == (rows, 32)
    assert torch.equal(model.get_parameter(POSITIONS), whole.get_parameter(POSITIONS)[:rows])
    ids = torch.tensor([[2, 7, 30, 41, 9, 11, 3]])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, whole.eval()(ids).logits)
    assert model.config.max_position_embeddings == rows


@pytest.mark.parametrize("trim", [True, False])
def test_a_checkpoint_in_half_precision_is_loaded_as_float32(
    tiny_classifier: BertForSequenceClassification, tiny_classifier_dir: Path, broken: Path, trim: bool
) -> None:
    copy.deepcopy(tiny_classifier).half().save_pretrained(broken)
    model, _ = opened(broken, max_length=16, trim_positions=trim).load(0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# Other architectures


@pytest.fixture(scope="module", params=BACKBONES)
def architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A model type and a tiny classifier of it."""
    return request.param, save_tiny(request.param, tmp_path_factory.mktemp(request.param))


def test_trimmed_models_read_texts_of_the_whole_length(architecture: tuple[str, Path]) -> None:
    name, folder = architecture
    source = opened(folder, max_length=16, trim_positions=True)
    small, (whole, has_head) = source.load(0)[0], opened(folder).load(0)
    assert has_head
    unused = {"bert": 0, "distilbert": 0, "roberta": 2}[name]
    positions = f"{source.backbone.embedding_modules['position_embedding']}.weight"
    assert source.shapes()[positions] == tuple(small.get_parameter(positions).shape) == (16 + unused, 32)
    batch = source.tokenizer(["the film was very great and this plot is lovely " * 9], truncation=True, max_length=16)
    ids = torch.tensor(batch["input_ids"])
    assert ids.shape == (1, 16)
    with torch.no_grad():
        torch.testing.assert_close(small.eval()(ids).logits, whole.eval()(ids).logits)


def test_the_longest_text_is_what_the_positions_hold(architecture: tuple[str, Path]) -> None:
    _, folder = architecture
    opened(folder, max_length=64)
    with pytest.raises(ModelError, match="--max-length 65 is beyond the model's 64 positions"):
        opened(folder, max_length=65)


def test_the_shortest_text_has_room_in_a_pair(architecture: tuple[str, Path]) -> None:
    name, folder = architecture
    shortest = 5 if name == "roberta" else 4
    pair = opened(folder, max_length=shortest).tokenizer("film", "plot", truncation=True, max_length=shortest)
    assert len(pair["input_ids"]) == shortest
    with pytest.raises(ModelError, match=f"leaves no room for text: give {shortest} or more"):
        opened(folder, max_length=shortest - 1)


def test_a_bare_encoder_of_any_architecture(architecture: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = architecture
    shutil.copytree(folder, tmp_path / "bare")
    tiny(name).base_model.save_pretrained(tmp_path / "bare")
    model, has_head = opened(tmp_path / "bare").load(0)
    assert not has_head
    words = f"{BACKBONES[name].embedding_modules['word_embedding']}.weight"
    assert torch.equal(model.get_parameter(words), tiny(name).get_parameter(words))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_tokenizer_gives_what_the_model_takes(name: str, tiny_classifier_dir: Path, tmp_path: Path) -> None:
    """Folders of DistilBERT often name the tokenizer of BERT, which adds token types; saved and loaded plainly it still fits."""
    tokenizer = load_tokenizer(str(tiny_classifier_dir), BACKBONES[name])
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert set(tokenizer("a film", "a plot")) == set(again("a film", "a plot")) == set(BACKBONES[name].inputs)
    assert ("token_type_ids" in again("a film")) == (name == "bert")


# What is wrong with a folder


def forget_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def change(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return apply


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def forget_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def lose_a_layer(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if "layer.1.output.dense" not in k}, folder / "model.safetensors", {"format": "pt"})


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{not json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (forget_config, "config.json is missing"),
        (spoil_config, "damaged or incomplete"),
        (change(model_type="gpt2"), "is a 'gpt2' model; supported are bert"),
        (change(model_type="no-such-thing"), "damaged or incomplete"),
        (cut_weights, "damaged or incomplete"),
        (forget_weights, "damaged or incomplete"),
        (lose_a_layer, r"lacks 2 tensors of its encoder, such as bert\.encoder\.layer\.1\.output\.dense\.bias"),
    ],
)
def test_a_broken_directory_is_one_line(damage: Callable[[Path], None], message: str, broken: Path) -> None:
    damage(broken)
    with pytest.raises(ModelError, match=message) as caught:
        opened(broken).load(0)
    assert "\n" not in str(caught.value)
    assert str(broken) in str(caught.value)


def test_a_head_of_another_size_is_refused_with_both_numbers(tiny_classifier_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"head of 2 outputs, the data has 3 \(classes\)"):
        opened(tiny_classifier_dir, ("a", "b", "c"))
    with pytest.raises(ModelError, match=r"head of 2 outputs, the data has 1 \(regression\)"):
        opened(tiny_classifier_dir, None)


@pytest.mark.parametrize(("max_length", "message"), [(65, "--max-length 65 is beyond the model's 64 positions"), (3, "no room")])
def test_a_length_that_does_not_fit_is_refused(max_length: int, message: str, tiny_classifier_dir: Path) -> None:
    with pytest.raises(ModelError, match=message):
        opened(tiny_classifier_dir, max_length=max_length)
    opened(tiny_classifier_dir, max_length=64)


def test_a_name_that_is_nowhere_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="is no directory here and could not be fetched"):
        opened(Path("nobody/nothing"))


def test_a_bare_encoder_marked_as_a_classifier_can_learn_a_regression(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "marked"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "single_label_classification"}))
    model, has_head = opened(folder, labels=None).load(seed=0)
    assert not has_head
    assert model.config.problem_type == "regression"


def rename_classes(folder: Path, *names: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    named = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps({**config, **named}))


@pytest.mark.parametrize(("there", "told"), [(("food", "sport"), True), (("LABEL_0", "LABEL_1"), False), (("0", "1"), False)])
def test_a_head_of_other_classes_is_known(there: tuple[str, str], told: bool, broken: Path) -> None:
    """Names that are none say nothing."""
    assert opened(broken).head_classes == ()
    rename_classes(broken, *there)
    source = opened(broken)
    assert source.head_classes == (there if told else ())
    assert source.config.id2label == {0: "negative", 1: "positive"}


def test_a_quantised_model_is_refused(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "autoquant"}}))
    with pytest.raises(ModelError, match="broken is quantised already: give the full-precision model, such as teacher/"):
        opened(broken)


def test_a_head_with_its_classes_in_another_order_is_refused(broken: Path) -> None:
    rename_classes(broken, "Positive", "Negative")
    with pytest.raises(ModelError, match="orders the classes Positive, Negative, the data negative, positive"):
        opened(broken)

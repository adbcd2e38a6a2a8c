"""What transformers does with a packed folder: load, predict, save and upload, on any architecture, and what it refuses."""

import copy
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, pipeline

import autoquant
from architectures import save_tiny, tiny
from autoquant.backbones import BACKBONES
from autoquant.core.errors import AutoquantError, CheckpointError, ModelError
from autoquant.pack.model import load_packed
from packed import logits, save, simulated

Maker = Callable[..., Any]


def load(folder: Path, memory: str | None = None, **options: Any) -> PreTrainedModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers says that the folder's config stays, but for the memory
        if memory is not None:
            options["quantization_config"] = autoquant.AutoquantConfig(memory=memory)
        return AutoModelForSequenceClassification.from_pretrained(folder, **options)


@pytest.fixture(scope="module", params=BACKBONES)
def architecture(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny(request.param)


@pytest.fixture(scope="module")
def folder(make_material: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed BERT with its tokenizer; do not write into it."""
    return packed_folder(make_material, tiny("bert"), tmp_path_factory.mktemp("packed"))


@pytest.fixture
def copied(make_material: Maker, tmp_path: Path) -> Path:
    """A packed BERT that may be harmed."""
    return packed_folder(make_material, tiny("bert"), tmp_path / "model")


def packed_folder(make_material: Maker, classifier: PreTrainedModel, path: Path, **options: Any) -> Path:
    save_tiny(classifier.config.model_type, path)
    settings = {"activation_bits": options.get("activation_bits", 32), "quantizer": "midrise", "scale": "row"}
    config = {"quantization_config": {"quant_method": "autoquant", **settings}, "dtype": "float32"}
    return save(make_material(classifier=classifier, **options), classifier, path, **config)


# Loading


@pytest.mark.parametrize("memory", [None, "unpacked", "packed"])
def test_logits_are_those_of_the_simulated_model(
    architecture: PreTrainedModel, memory: str | None, make_material: Maker, tmp_path: Path
) -> None:
    path = packed_folder(make_material, architecture, tmp_path / "model")
    model, info = load(path, memory, output_loading_info=True)
    material = make_material(classifier=architecture)
    torch.testing.assert_close(logits(model), logits(simulated(material, architecture)), atol=1e-5, rtol=0)
    assert type(model) is type(architecture)
    assert not any(info.values())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("memory", ["unpacked", "packed"])
def test_both_ways_to_load_give_the_same_model(memory: str, make_material: Maker, tmp_path: Path) -> None:
    path = packed_folder(make_material, tiny("bert"), tmp_path / "model", activation_bits=8)
    ours, theirs = load_packed(path, memory), load(path, memory)
    assert torch.equal(logits(ours), logits(theirs))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("memory", ["unpacked", "packed"])
def test_memory_decides_what_is_kept(memory: str, folder: Path) -> None:
    model = load(folder, memory)
    logits(model)
    kept = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith(".unpacked"))
    assert kept == (0 if memory == "packed" else sum(p.numel() for p in tiny("bert").parameters() if p.dim() == 2))


def test_memory_of_another_name_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="memory is 'disk'"):
        load(folder, "disk")


@pytest.mark.parametrize("memory", ["unpacked", "packed"])
def test_bfloat16(memory: str, folder: Path) -> None:
    for model in (load(folder, memory, dtype=torch.bfloat16), load_packed(folder, memory, torch.bfloat16)):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert logits(model).dtype == torch.bfloat16
        torch.testing.assert_close(logits(model).float(), logits(load_packed(folder)), atol=0.02, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("memory", ["unpacked", "packed"])
@pytest.mark.parametrize("device_map", ["cuda", "auto"])
def test_a_gpu(memory: str, device_map: str, folder: Path, tmp_path: Path) -> None:
    model = load(folder, memory, device_map=device_map)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cuda"}
    ids = torch.tensor([[2, 7, 30, 41, 3]])
    torch.testing.assert_close(model(ids.cuda()).logits.cpu(), load(folder)(ids).logits, atol=1e-4, rtol=0)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_pipeline_classifies(folder: Path) -> None:
    texts = ["the film was great", "and this plot is dull, very dull"]
    answers = pipeline("text-classification", model=str(folder))(texts, batch_size=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        scores = load_packed(folder)(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(dim=1)
    assert [answer["label"] for answer in answers] == [f"LABEL_{int(index)}" for index in scores.argmax(dim=1)]
    assert [answer["score"] for answer in answers] == pytest.approx(scores.max(dim=1).values.tolist(), abs=1e-6)


# Saving


@pytest.mark.parametrize("options", [{}, {"memory": "packed"}, {"dtype": torch.bfloat16}])
def test_saving_writes_the_same_file(
    options: dict[str, Any], architecture: PreTrainedModel, make_material: Maker, tmp_path: Path
) -> None:
    path = packed_folder(make_material, architecture, tmp_path / "model")
    model = copy.deepcopy(load(path, **options))
    logits(model)
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["quantization_config"] == json.loads((path / "config.json").read_text())["quantization_config"]
    assert config["architectures"] == [type(architecture).__name__]
    for again in (load(tmp_path / "again", dtype=torch.float32), load_packed(tmp_path / "again")):
        assert torch.equal(logits(again), logits(load(path)))


def test_our_own_loader_saves_too(folder: Path, tmp_path: Path) -> None:
    load_packed(folder).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert torch.equal(logits(load(tmp_path)), logits(load(folder)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_changed_model_is_not_saved_as_the_old_one(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    model = load(folder, dtype=dtype)  # float16 is what the file has: the model's tensors must be copies all the same
    with torch.no_grad():
        model.get_parameter("classifier.bias").add_(1)
    with pytest.raises(CheckpointError, match=r"classifier\.bias was changed after loading"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_pickled_copy_is_saved_too(folder: Path, tmp_path: Path) -> None:
    model = pickle.loads(pickle.dumps(load(folder)))
    assert torch.equal(logits(model), logits(load(folder)))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_transformers_own_way_of_saving_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not serializable"):
        PreTrainedModel.save_pretrained(load(folder), tmp_path)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bytes]]:
    """The files of every commit to the hub, by their path there; nothing leaves the machine."""
    commits: list[dict[str, bytes]] = []

    def create_commit(_: Any, *__: Any, operations: Any, **___: Any) -> Any:
        commits.append({operation.path_in_repo: Path(operation.path_or_fileobj).read_bytes() for operation in operations})
        return huggingface_hub.CommitInfo(
            commit_url="https://huggingface.co/somebody/small/commit/0", commit_message="m", commit_description="d", oid="0"
        )

    def create_repo(_: Any, repo_id: str, **__: Any) -> huggingface_hub.RepoUrl:
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    return commits


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_an_upload_holds_the_packed_file(way: str, folder: Path, uploads: list[dict[str, bytes]], tmp_path: Path) -> None:
    model = load(folder)
    if way == "push_to_hub":
        model.push_to_hub("somebody/small")
    else:
        model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="somebody/small")
    assert len(uploads) == 1
    assert uploads[0]["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    (tmp_path / "downloaded").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "downloaded" / name).write_bytes(uploads[0][name])
    assert torch.equal(logits(load(tmp_path / "downloaded")), logits(model))


# Refusing


def flip_a_byte(path: Path) -> None:
    raw = bytearray((path / "model.safetensors").read_bytes())
    raw[-100] ^= 1
    (path / "model.safetensors").write_bytes(raw)


def cut(path: Path) -> None:
    raw = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(raw[:-1])


def write_as_transformers_would(path: Path) -> None:
    save_file(load_file(path / "model.safetensors"), path / "model.safetensors", {"format": "pt"})


def put_a_pickle(path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def cut_into_shards(path: Path) -> None:
    names = load_file(path / "model.safetensors")
    (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def configure(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | changes))

    return change


class Bomb:
    """Fails the test where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (flip_a_byte, CheckpointError, "the checksum does not match"),
        (cut, CheckpointError, "the checksum does not match"),
        (write_as_transformers_would, CheckpointError, "no autoquant settings"),
        (put_a_pickle, ModelError, "weights in one model.safetensors"),
        (cut_into_shards, ModelError, "weights in one model.safetensors"),
        (configure(num_hidden_layers=3), CheckpointError, "layer.2"),
        (configure(num_hidden_layers=10**9), ModelError, "claims 1000000000 layers"),
        (configure(max_position_embeddings=10**9), ModelError, "claims 1000000000 positions"),
        (configure(intermediate_size=63), CheckpointError, "intermediate"),
        (configure(attn_implementation="somebody/kernel"), ModelError, "is code from the hub"),
        (configure(_attn_implementation="somebody/kernel"), ModelError, "is code from the hub"),
    ],
)
def test_damage_is_one_line(damage: Callable[[Path], None], error: type[AutoquantError], message: str, copied: Path) -> None:
    damage(copied)
    with pytest.raises(error, match=message) as caught:
        load(copied)
    assert "\n" not in str(caught.value)


def test_code_beside_the_model_is_not_run(copied: Path) -> None:
    (copied / "evil.py").write_text("raise SystemExit('code from the folder was executed')")
    names = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    configure(auto_map=names)(copied)
    assert torch.equal(logits(load(copied)), logits(load_packed(copied)))


def test_the_tensors_are_those_that_were_checked(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is swapped after its checksum was taken changes nothing: what transformers itself reads is replaced."""
    from transformers import modeling_utils

    expected = logits(load(copied))
    original = modeling_utils.PreTrainedModel._load_pretrained_model

    def swap_first(*arguments: Any, **options: Any) -> Any:
        flip_a_byte(copied)
        return original(*arguments, **options)

    monkeypatch.setattr(modeling_utils.PreTrainedModel, "_load_pretrained_model", staticmethod(swap_first))
    assert torch.equal(logits(load(copied)), expected)


def test_other_models_and_heads_are_refused(folder: Path, tiny_classifier_dir: Path) -> None:
    with pytest.raises(ModelError, match="BertModel cannot be packed: load with AutoModelForSequenceClassification"):
        AutoModel.from_pretrained(folder)
    with pytest.raises(ModelError, match="This model is not packed"):
        load(tiny_classifier_dir, "packed")


def test_more_than_one_device_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="onto one device"):
        load(folder, device_map={"bert": "cpu", "classifier": "disk"})


def test_plain_models_load_as_ever(tiny_classifier_dir: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_classifier_dir)
    assert all(isinstance(model.get_submodule(path), nn.Linear) for path in ("classifier", "bert.pooler.dense"))

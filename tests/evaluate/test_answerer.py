"""Answers do not depend on what is answered beside them, nor on how they are told."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import save_file

from llava_train.config.schema import GenerateModel
from llava_train.data.samples.sample import Sample, Turn
from llava_train.evaluate.answerer import Answerer, TextStreamer
from llava_train.model.files.tensor_names import export_name
from llava_train.model.loading.load_model import load_checkpoint
from llava_train.model.loading.tiny_model import byte_tokenizer, make_tiny, tiny_config, tiny_model
from llava_train.shared.errors import ConfigError, DataError

NEW_TOKENS = 10
CPU = torch.device("cpu")
SIZES = ((40, 50), (90, 20), (33, 71), (28, 28))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("answer")
    for i, (height, width) in enumerate(SIZES):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
        film = root / f"film{i}"
        film.mkdir()
        for frame in range(i + 1):
            Image.fromarray(np.roll(pixels, 7 * frame, axis=1)).save(film / f"{frame}.png")
    make_tiny(root / "tiny", tied=False)
    return root


@pytest.fixture(scope="module")
def answerer(root):
    return Answerer(str(root / "tiny"), CPU, 10**6, 10.0)


@pytest.fixture(scope="module")
def samples(root):
    """Thirty prompts: text alone, one image, several, video, both, and each of these over several turns."""
    made = []
    for i in range(30):
        kind, rng = i % 5, np.random.default_rng(i)
        images = [root / f"{n}.png" for n in rng.integers(0, 4, (0, 1, 3, 0, 2)[kind])]
        videos = [root / f"film{n}" for n in rng.integers(0, 4, (0, 0, 0, 1, 1)[kind])]
        tags = "<image>\n" * len(images) + "<video>\n" * len(videos)
        turns = [Turn("human", f"{tags}Question {i}: {'what ' * rng.integers(1, 20)}?")]
        if i % 2:
            turns += [Turn("gpt", f"Answer {i}."), Turn("human", "Why?")]
        made.append(Sample(str(i), "many", turns, images, videos, record=str(i)))
    return made


@pytest.fixture(scope="module")
def alone(answerer, samples):
    return list(answerer.answers(samples, 1, NEW_TOKENS))


@pytest.mark.parametrize("batch_size", [7, 30])
def test_batched_answers_are_those_given_alone(answerer, samples, alone, batch_size):
    assert len(set(alone)) > 15
    assert list(answerer.answers(samples, batch_size, NEW_TOKENS)) == alone


def test_pieces_join_to_the_answer(answerer, samples, alone):
    in_pieces = 0
    for sample, answer in zip(samples, alone, strict=True):
        told = []
        assert answerer.stream(sample, told.append, NEW_TOKENS) == answer
        assert "".join(told) == answer
        in_pieces += len(told) > 1
    assert in_pieces > len(samples) // 2


@pytest.mark.parametrize("text", ["naïve café", "日本語 ok", "a  b \n c ", " 🙂🙂 x"])
def test_a_character_is_told_once_it_is_whole(answerer, text):
    told, tokenizer = [], answerer.tokenizer
    streamer = TextStreamer(lambda ids: tokenizer.decode(ids).strip(), [999], told.append)
    streamer.put(torch.tensor([[1, 2, 3]]))
    for token in [*tokenizer(text)["input_ids"], 999]:
        streamer.put(torch.tensor([token]))
        assert "\ufffd" not in "".join(told)
    streamer.end()
    assert "".join(told) == text.strip()


def test_sampled_answers_follow_seed_and_samples_alone(answerer, samples, alone):
    def ask(seed, asked=samples[:8]):
        torch.rand(3)
        return list(answerer.answers(asked, 4, NEW_TOKENS, seed, do_sample=True, temperature=1.5))

    state = torch.get_rng_state()
    first = ask(0)
    torch.set_rng_state(state)
    assert list(answerer.answers(samples[:4], 4, NEW_TOKENS, 0, do_sample=True, temperature=1.5)) == first[:4]
    assert torch.equal(torch.get_rng_state(), state)
    assert ask(0) == first
    assert ask(0, samples[4:8]) == first[4:]
    assert ask(1) != first
    assert first != alone[:8]


def test_the_checkpoints_own_options_act_where_they_are_passed(root, samples, alone):
    folder = make_tiny(root / "opinionated", tied=False)
    path = folder / "generation_config.json"
    own = {"do_sample": True, "temperature": 2.0, "repetition_penalty": 1.5}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    opinionated = Answerer(str(folder), CPU, 10**6, 10.0)
    assert opinionated.own_sampling == own
    assert list(opinionated.answers(samples[:4], 4, NEW_TOKENS)) == alone[:4]
    assert list(opinionated.answers(samples[:4], 4, NEW_TOKENS, **opinionated.own_sampling)) != alone[:4]


def test_an_error_takes_the_place_of_its_answer_alone(answerer, samples, alone, root):
    bad = Sample("bad", "many", [Turn("human", "<image>\n?")], [root / "absent.png"], record="9")
    outcomes = list(answerer.outcomes([bad, samples[0], bad, bad, samples[1]], 2, NEW_TOKENS))
    assert [outcomes[1], outcomes[4]] == alone[:2]
    assert [outcomes[i].reason for i in (0, 2, 3)] == ["missing file"] * 3
    with pytest.raises(DataError, match="many, record 9: missing file"):
        list(answerer.answers([samples[0], bad], 2, NEW_TOKENS))
    assert list(answerer.answers([], 2, NEW_TOKENS)) == []


@pytest.fixture(scope="module")
def adapted(root):
    """A folder as PEFT writes it, and one with the adapter merged into the weights."""
    hf_model = load_checkpoint(GenerateModel(str(root / "tiny")), torch.float32).model
    targets = r".*language_model\..*\.(q_proj|v_proj|down_proj)"
    wrapped = get_peft_model(hf_model, LoraConfig(r=4, lora_alpha=32, target_modules=targets))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    wrapped.save_pretrained(str(root / "adapter"))
    shutil.copytree(root / "tiny", root / "merged")
    tensors = wrapped.merge_and_unload().named_parameters()
    merged = {export_name(name): parameter.detach().contiguous() for name, parameter in tensors}
    save_file(merged, root / "merged/model.safetensors", {"format": "pt"})
    return root / "adapter", root / "merged"


@pytest.mark.parametrize("device_map", ["none", "auto"])
def test_an_adapter_answers_as_the_merged_model(root, samples, alone, adapted, device_map):
    adapter, merged = adapted
    expected = list(Answerer(str(merged), CPU, 10**6, 10.0).answers(samples, 10, NEW_TOKENS))
    assert expected != alone
    on_base = Answerer(str(root / "tiny"), CPU, 10**6, 10.0, adapter=str(adapter), device_map=device_map)
    assert list(on_base.answers(samples, 10, NEW_TOKENS)) == expected


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_a_quantised_base_answers_with_an_adapter_and_without(root, samples, adapted, load_in):
    pytest.importorskip("bitsandbytes")
    plain, on_base = (
        Answerer(str(root / "tiny"), CPU, 10**6, 10.0, adapter=adapter, load_in=load_in)
        for adapter in ("", str(adapted[0]))
    )
    answers = list(plain.answers(samples[:5], 5, NEW_TOKENS))
    assert any(answers)
    assert list(on_base.answers(samples[:5], 5, NEW_TOKENS)) != answers


def test_an_adapter_is_refused_on_weights_that_are_elsewhere(root, adapted, monkeypatch):
    def on_meta(*_):
        with torch.device("meta"):
            model = tiny_model(tiny_config(byte_tokenizer()))
        return SimpleNamespace(model=model)

    monkeypatch.setattr("llava_train.evaluate.answerer.load_checkpoint", on_meta)
    with pytest.raises(ConfigError, match="load_in=4bit"):
        Answerer(str(root / "tiny"), CPU, 10**6, 10.0, adapter=str(adapted[0]), device_map="auto")

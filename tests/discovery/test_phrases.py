"""Whole words are found as they are meant, in time that grows with the text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.discovery.phrases import Phrases, Presence, tokens

WORDS = (
    "rank",
    "low rank",
    "low rank adaptation",
    "adapter",
    "LoRA",
    "*LoRA",
    "LoRA*",
    "fine tuning",
    "bias term",
    "loss",
)
EXACT = ("LoRA", "*LoRA", "LoRA*")


def found(text: str) -> dict[str, int]:
    return Phrases(WORDS, EXACT).counts(tokens(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Low-Rank updates", {"low rank": 1}),
        ("low_rank, LOW   RANK", {"low rank": 2}),
        ("a low-rank adaptation of", {"low rank adaptation": 1}),
        ("finetuning, fine-tuning and Fine Tuning", {"fine tuning": 3}),
        ("adapters; (adapter)", {"adapter": 2}),
        ("adapterless readapter", {}),
        ("LoRA, LoRAs", {"LoRA": 2}),
        ("LoRa lora LORA", {}),
        ("QLoRA and AdaLoRA", {"*LoRA": 2}),
        ("LoRAHub", {"LoRA*": 1}),
        ("LoRaWAN FLoRa", {}),
        ("bias terms, biased term", {"bias term": 1}),
        ("a loss", {"loss": 1}),
        ("slow rank", {"rank": 1}),
        ("a rank, a low rank", {"rank": 1, "low rank": 1}),
        ("low rankle", {}),
        ("", {}),
        ("low", {}),
    ],
)
def test_words_are_found_whole(text, words):
    assert found(text) == words


@settings(deadline=None)
@given(st.lists(st.sampled_from(["low", "rank", "Rank", "LoRA", "QLoRA", "finetuning", "adapters", "-", "\n", "ß"])))
def test_what_is_there_is_never_thought_impossible(parts):
    text = " ".join(parts)
    if Phrases(WORDS).counts(tokens(text)):
        assert Presence(WORDS).possible(text)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read(text):
    counts = found(text)
    assert not counts or Presence(WORDS).possible(text)
    assert len(tokens(text).written) == len(tokens(text).lower)


@pytest.mark.parametrize(
    "part", ["low ", "low -", "low-rank ", "a", "LoRA", "fine", "finetuning", "-", "_", "é", "low\x00", "ﬁ", "İ"]
)
def test_hostile_text_takes_time_in_proportion(part):
    text = part * 200_000
    start = time.perf_counter()
    Presence(WORDS).possible(text)
    found(text)
    assert time.perf_counter() - start < 10


def test_nothing_looked_for_is_nothing_found():
    assert Phrases(()).counts(tokens("LoRA")) == {}
    assert not Presence(()).possible("LoRA")

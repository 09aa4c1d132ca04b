"""The demo's language model: trained for a minute on the training split's report text alone, and then frozen.

    train_language_model(reports, LanguageModelConfig(), folder, seed=42)

What results is an ordinary Hugging Face folder (a small Llama and a byte-level BPE tokenizer) that MeGPT takes by
path like any other. A large chat model can already write what its prompt asks for; one this small has to be taught
that, and text suffices: between `<Img>` and `</Img>` stands, in place of visual tokens, a shuffled and incomplete
digest of the report to write. Each of the report's sentences becomes one or more vectors there, the sum of the
embeddings of some of its words plus noise, among others of noise alone. The model learns to write the report that
such vectors imply; later the projector learns to make them from a film.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megpt.config import LanguageModelConfig
from megpt.errors import InputError
from megpt.model.frame import PREFIX, SUFFIX
from megpt.model.prompts import INSTRUCTION, default_text

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CONTEXT = 512
SLOTS = 16
"""Vectors between the image marks; about as many as the encoder gives visual tokens."""
NEGATIONS = frozenset({"no", "normal", "clear", "without"})
IGNORED = -100


def train_tokenizer(reports: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the reports and of the prompt's frame; it can spell any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    frame = PREFIX + SUFFIX.format(text=default_text(["a"]))
    tokenizer.train_from_iterator([*reports, *[frame] * (len(reports) // 10 + 1)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=CONTEXT
    )


def new_model(settings: LanguageModelConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of random weights (torch's current seed). Its embeddings have the scale of a LayerNorm's output,
    which is what the projector will put beside them."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.hidden_size * 5 // 2,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_heads,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # The usual 0.02 suits wide models; at a width of 100 it keeps attention flat for hundreds of steps.
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=1.0)
    return model


@dataclass(frozen=True, slots=True)
class Lesson:
    """One report: its token ids with the end token, and for each sentence its words' token ids, negated or not."""

    ids: list[int]
    sentences: list[tuple[list[list[int]], bool]]


def lesson(report: str, tokenizer: PreTrainedTokenizerFast) -> Lesson:
    """Take a report apart."""
    sentences = []
    for sentence in filter(None, (part.strip(" .") for part in report.split(". "))):
        words = sentence.lower().split()
        tokens = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
        sentences.append((tokens, bool(NEGATIONS & set(words))))
    ids = tokenizer(report, add_special_tokens=False)["input_ids"]
    return Lesson([*ids, tokenizer.eos_token_id], sentences)


def digest(
    lessons: Sequence[Lesson], table: Tensor, rng: random.Random, noise: Tensor, difficulty: float = 1.0
) -> Tensor:
    """What stands in place of the visual tokens.

    Args:
        table: the embedding table (vocabulary, H). noise: standard normal (B, SLOTS, H).
        difficulty: 0: every word is there and hardly any noise; 1: up to half the words are missing among full noise.

    Returns:
        (B, SLOTS, H), each vector of mean 0 and variance 1. A sentence lies in one to three slots, each with its own
        choice of its words; half of the negated sentences are left out, since a film shows no denials.
    """
    noise = noise * min(1.0, 0.1 + difficulty)
    bags: list[int] = []
    starts: list[int] = []
    places: list[int] = []
    for row, one in enumerate(lessons):
        free = rng.sample(range(SLOTS), SLOTS)
        for words, negated in one.sentences:
            if negated and rng.random() < 0.5:
                continue
            keep = rng.uniform(1.0 - 0.5 * difficulty, 1.0)
            for _ in range(rng.choice((1, 1, 2, 3))):
                if not free:
                    break
                starts.append(len(bags))
                places.append(row * SLOTS + free.pop())
                bags += [t for word in words if rng.random() < keep for t in word] or words[-1]
    vectors = noise.flatten(0, 1)
    if starts:
        first = torch.tensor(starts)
        counts = torch.diff(first, append=torch.tensor([len(bags)]))
        sums = F.embedding_bag(torch.tensor(bags), table, first, mode="sum") / counts.sqrt()[:, None]
        spots = torch.tensor(places)
        vectors = vectors.index_copy(0, spots, sums + 0.5 * vectors[spots])
    return F.layer_norm(vectors, vectors.shape[-1:]).view_as(noise)


class Teacher:
    """Draws batches and gives their loss."""

    def __init__(
        self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, reports: Sequence[str], rng: random.Random
    ):
        self.model, self.tokenizer, self.rng = model, tokenizer, rng
        self.lessons = [lesson(report, tokenizer) for report in reports]
        self.words = sorted({word.strip(".,").lower() for report in reports[:2000] for word in report.split()})
        self.prefix = [tokenizer.bos_token_id, *tokenizer(PREFIX, add_special_tokens=False)["input_ids"]]

    def _suffix(self) -> list[int]:
        """Prompts name terms that mean nothing for the report at hand, so that none is copied from there."""
        terms = self.rng.sample(self.words, min(len(self.words), self.rng.randint(1, 6)))
        text = INSTRUCTION if self.rng.random() < 0.3 else default_text(terms)
        return list(self.tokenizer(SUFFIX.format(text=text), add_special_tokens=False)["input_ids"])

    def loss(self, size: int, generator: torch.Generator, difficulty: float = 1.0) -> Tensor:
        """Mean cross-entropy of `size` reports, each behind its digest."""
        lessons = self.rng.sample(self.lessons, min(size, len(self.lessons)))
        embed = self.model.model.embed_tokens
        noise = torch.randn(len(lessons), SLOTS, embed.embedding_dim, generator=generator)
        longest = max(len(one.ids) for one in lessons)
        labels = torch.tensor([one.ids + [IGNORED] * (longest - len(one.ids)) for one in lessons])
        around = [embed(torch.tensor(ids)).expand(len(lessons), -1, -1) for ids in (self.prefix, self._suffix())]
        report = embed(labels[:, :-1].clamp(min=0))
        shown = digest(lessons, embed.weight, self.rng, noise, difficulty)
        embeds = torch.cat((around[0], shown, around[1], report), 1)
        hidden = self.model.model(inputs_embeds=embeds).last_hidden_state[:, -longest:]
        known = labels != IGNORED
        return F.cross_entropy(self.model.lm_head(hidden[known]), labels[known])


def train_language_model(
    reports: Sequence[str],
    settings: LanguageModelConfig,
    folder: str | Path,
    *,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
) -> float:
    """Train tokenizer and model on `reports` and save both in `folder`.

    Args:
        on_step: called after each step with its number (from 1) and its loss.

    Returns:
        The mean loss of the last twentieth of the steps, nats a token.

    Raises:
        InputError: no report text at all.
    """
    texts = [report.strip() for report in reports if report and report.strip()]
    if not texts:
        raise InputError(
            "no report text to train a language model on",
            cause="the training split has no reports",
            next="prepare an archive with reports, or set model.llm to an existing model",
        )
    tokenizer = train_tokenizer(texts, settings.vocab_size)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(settings, tokenizer)
    teacher = Teacher(model, tokenizer, texts, random.Random(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.01, betas=(0.9, 0.98))
    warmup = max(1, min(30, settings.steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / warmup) * (0.05 + 0.475 * (1 + math.cos(math.pi * s / settings.steps)))
    )
    losses: list[float] = []
    for step in range(1, settings.steps + 1):
        # Easy digests first: reading them at all is learnt suddenly, and far later when they are noisy from the start.
        difficulty = min(1.0, 1.5 * step / settings.steps)
        loss = teacher.loss(settings.batch_size, generator, difficulty)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if on_step:
            on_step(step, losses[-1])
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    last = losses[-max(1, settings.steps // 20) :]
    return sum(last) / len(last)

"""A small language model: trained for minutes on the training split's report text alone, and then frozen.

    fit = train_language_model(reports, LanguageModelConfig(), folder, seed=42)

The result is an ordinary Hugging Face folder (a small Llama and a byte-level BPE tokenizer), which MeGPT loads by path
like any other. A large chat model can already write what its prompt asks for; one this small has to be taught that,
and text is enough: the visual tokens between `<Img>` and `</Img>` are replaced by a shuffled and incomplete digest of
the report. Each sentence of the report becomes one or more vectors, each the sum of the embeddings of some of its words
plus noise; other vectors are noise alone. The model learns to write the report that such vectors imply; later the
projector learns to make them from a film.
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
from megpt.model.loss import IGNORED_LABEL
from megpt.model.prompts import INSTRUCTION, PREFIX, SUFFIX, default_text
from megpt.places.whole import follow_umask

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CONTEXT = 512
SLOTS = 16
"""Vectors between the image marks; about as many as the encoder gives visual tokens."""
NEGATIONS = frozenset({"no", "normal", "clear", "without"})


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
    """A Llama with random weights (from torch's current seed).

    Its embeddings have the scale of a LayerNorm's output, since the projector's output will be placed beside them.
    """
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
    """One report: its token ids with the end token, and its sentences."""

    ids: list[int]
    sentences: list[tuple[list[list[int]], bool]]
    """The token ids of each word, and whether the sentence is a negation."""


def make_lesson(report: str, tokenizer: PreTrainedTokenizerFast) -> Lesson:
    """Split a report into sentences and words."""
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
    """The vectors that replace the visual tokens.

    Args:
        table: the embedding table (vocabulary, H). noise: standard normal (B, SLOTS, H).
        difficulty: 0: every word is present and there is hardly any noise; 1: up to half the words are missing, and
            the noise has its full strength.

    Returns:
        (B, SLOTS, H), each vector of mean 0 and variance 1. A sentence takes one to three slots, each with its own
        selection of the words; half of the negated sentences are omitted, since a film does not show what is absent.
    """
    noise = noise * min(1.0, 0.1 + difficulty)
    bags: list[int] = []
    starts: list[int] = []
    places: list[int] = []
    for row, lesson in enumerate(lessons):
        free = rng.sample(range(SLOTS), SLOTS)
        for words, negated in lesson.sentences:
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
    """Draws batches and computes their loss."""

    def __init__(
        self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, reports: Sequence[str], rng: random.Random
    ):
        self.model, self.tokenizer, self.rng = model, tokenizer, rng
        self.lessons = [make_lesson(report, tokenizer) for report in reports]
        self.words = sorted({word.strip(".,").lower() for report in reports[:2000] for word in report.split()})
        self.prefix = [tokenizer.bos_token_id, *tokenizer(PREFIX, add_special_tokens=False)["input_ids"]]

    def _suffix(self) -> list[int]:
        """A prompt that names random terms, so that the model does not learn to copy terms from prompts."""
        terms = self.rng.sample(self.words, min(len(self.words), self.rng.randint(1, 6)))
        text = INSTRUCTION if self.rng.random() < 0.3 else default_text(terms)
        return list(self.tokenizer(SUFFIX.format(text=text), add_special_tokens=False)["input_ids"])

    def loss(self, size: int, generator: torch.Generator, difficulty: float = 1.0) -> Tensor:
        """Mean cross-entropy of `size` reports, each written after its digest."""
        return self.loss_of(self.rng.sample(self.lessons, min(size, len(self.lessons))), generator, difficulty)

    def loss_of(self, lessons: Sequence[Lesson], generator: torch.Generator, difficulty: float = 1.0) -> Tensor:
        """Mean cross-entropy of these reports."""
        embed = self.model.model.embed_tokens
        noise = torch.randn(len(lessons), SLOTS, embed.embedding_dim, generator=generator)
        longest = max(len(lesson.ids) for lesson in lessons)
        labels = torch.tensor([lesson.ids + [IGNORED_LABEL] * (longest - len(lesson.ids)) for lesson in lessons])
        around = [embed(torch.tensor(ids)).expand(len(lessons), -1, -1) for ids in (self.prefix, self._suffix())]
        report = embed(labels[:, :-1].clamp(min=0))
        vectors = digest(lessons, embed.weight, self.rng, noise, difficulty)
        embeds = torch.cat((around[0], vectors, around[1], report), 1)
        hidden = self.model.model(inputs_embeds=embeds).last_hidden_state[:, -longest:]
        known = labels != IGNORED_LABEL
        return F.cross_entropy(self.model.lm_head(hidden[known]), labels[known])


@dataclass(frozen=True, slots=True)
class Fit:
    """How a training ended. Losses are nats a token."""

    steps: int
    """Steps taken."""
    loss: float
    """Mean loss of the last twentieth of them."""
    val_losses: dict[int, float]
    """Steps done → loss on the reports held out."""

    @property
    def kept(self) -> int:
        """The steps after which the saved weights were: those of the lowest loss held out, or of the last step."""
        return min(self.val_losses, key=lambda step: self.val_losses[step]) if self.val_losses else self.steps


class HeldOut:
    """Losses on held-out reports, the weights of the lowest one, and whether to stop."""

    def __init__(self, teacher: Teacher, reports: Sequence[str], settings: LanguageModelConfig, seed: int):
        self.settings, self.seed, self.losses = settings, seed, dict[int, float]()
        self.teacher = Teacher(teacher.model, teacher.tokenizer, reports, random.Random(seed))
        self.teacher.words = teacher.words
        self._best: dict[str, Tensor] = {}

    @torch.no_grad()
    def look(self, step: int) -> bool:
        """Whether `patience` losses in a row have brought no new lowest. The digests are the same at each look."""
        teacher, size = self.teacher, self.settings.batch_size
        teacher.rng, generator = random.Random(self.seed), torch.Generator().manual_seed(self.seed)
        lessons = teacher.lessons
        parts = [lessons[place : place + size] for place in range(0, len(lessons), size)]
        tokens = [sum(len(lesson.ids) for lesson in part) for part in parts]
        losses = [teacher.loss_of(part, generator).item() for part in parts]
        loss = sum(one * count for one, count in zip(losses, tokens, strict=True)) / sum(tokens)
        if loss < min(self.losses.values(), default=math.inf):
            self._best = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
        self.losses[step] = loss
        lowest = min(self.losses, key=lambda step: self.losses[step])
        return list(self.losses).index(lowest) < len(self.losses) - self.settings.patience

    def restore(self) -> None:
        """Put the weights of the lowest loss back into the model."""
        if self._best:
            self.teacher.model.load_state_dict(self._best)


def train_language_model(
    reports: Sequence[str],
    settings: LanguageModelConfig,
    folder: str | Path,
    *,
    seed: int,
    held_out: Sequence[str] = (),
    on_step: Callable[[int, float], None] | None = None,
) -> Fit:
    """Train a tokenizer and a model on `reports` and save both in `folder`.

    Args:
        held_out: reports for `val_every`: the weights with the lowest loss on them are saved.
        on_step: called after each step with its number (from 1) and its loss.

    Raises:
        InputError: there is no report text.
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
    watched = HeldOut(teacher, held_out, settings, seed) if settings.val_every else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.01, betas=(0.9, 0.98))
    warmup = max(1, min(30, settings.steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / warmup) * (0.05 + 0.475 * (1 + math.cos(math.pi * s / settings.steps)))
    )
    losses: list[float] = []
    for step in range(1, settings.steps + 1):
        # Easy digests first: the model learns suddenly to read them, and far later if they are noisy from the start.
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
        due = watched and (step % (settings.val_every or 1) == 0 or step == settings.steps)
        if watched and due and watched.look(step):
            break
    if watched:
        watched.restore()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    follow_umask(Path(folder))
    last = losses[-max(1, settings.steps // 20) :]
    return Fit(len(losses), sum(last) / len(last), watched.losses if watched else {})

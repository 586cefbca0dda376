"""The tokenizer and the small `UMT5EncoderModel`, taught on its own to say what a caption means.

Every output token carries the caption's whole code (`meaning.py`) in its first channels, so the transformer's
cross-attention finds it wherever it looks. Words outside the vocabulary are <unk>, which training sprinkles in.
"""

import random
from typing import Final

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from workers.training import captions, scene_captions
from workers.training.meaning import MEANING_WIDTH, draw_meaning, say

TEXT_WIDTH: Final = 64
LONGEST: Final = 48
_GAIN: Final = 2.0
"""Of the last norm in the channels that say something. It is not learnt: a channel that is rarely needed would learn
to say nothing first, and not recover."""
_HANZI: Final = "[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole English words and single Chinese characters; made from the grammar, nothing is downloaded."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    for word in sorted({*captions.vocabulary(), *scene_captions.vocabulary()}):
        words.setdefault(word, len(words))
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_HANZI), "isolated"), pre_tokenizers.Whitespace()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def build_encoder(seed: int, vocabulary_size: int) -> UMT5EncoderModel:
    """An untrained encoder of the demo model's size."""
    torch.manual_seed(seed)
    config = UMT5Config(
        vocab_size=vocabulary_size, d_model=TEXT_WIDTH, d_kv=16, d_ff=256, num_layers=3, num_heads=4, dropout_rate=0.0
    )
    return UMT5EncoderModel(config)


def draw_caption(rng: random.Random) -> tuple[str, tuple[float, ...]]:
    """A caption and its code, some with stray words around it."""
    meaning = draw_meaning(rng)
    text = say(meaning, rng)
    if rng.random() < 0.25:
        stray = "qqq " * rng.randint(1, 4)
        text = f"{text} {stray}" if rng.random() < 0.5 else f"{stray}{text}"
    return text, meaning.code


def teach(encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerFast, *, steps: int, seed: int) -> float:
    """Train `encoder` in place to put the meaning's code into every token and nothing beside it; returns the last
    running mean error."""
    rng = random.Random(seed)
    seen = torch.tensor([draw_meaning(rng).code for _ in range(2000)])
    weight = 1 / (seen.var(0) + 0.02)
    gains = encoder.encoder.final_layer_norm.weight
    with torch.no_grad():
        gains[:MEANING_WIDTH], gains[MEANING_WIDTH:] = _GAIN, 0
    gains.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], 2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    running = 1.0
    encoder.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products this small only lose by more
    for _ in range(steps):
        drawn = [draw_caption(rng) for _ in range(96)]
        batch = tokenizer([text for text, _ in drawn], return_tensors="pt", padding=True)
        target = torch.tensor([code for _, code in drawn])[:, None]
        out = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        error = ((out[..., :MEANING_WIDTH] - target).square() * weight).mean(-1)
        loss = (error * batch.attention_mask).sum() / batch.attention_mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = 0.98 * running + 0.02 * loss.item()
    torch.set_num_threads(threads)
    encoder.eval()
    return running


@torch.no_grad()
def embed(encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> torch.Tensor:
    """What diffusers' pipelines hand to the transformer, [prompts, tokens, width], zeros after each prompt's end,
    only cut to the longest prompt instead of padded to 512."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True, truncation=True, max_length=LONGEST)
    out = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    return out * batch.attention_mask[..., None]


@torch.no_grad()
def understanding(
    encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerFast, *, seed: int, count: int = 2000
) -> float:
    """The share of freshly drawn captions of which every number of the meaning comes out within 0.2: that tells all
    motions, speeds, colours, shapes, sizes and places apart."""
    rng = random.Random(seed)
    right = 0
    for _ in range(count // 50):
        wanted = [draw_meaning(rng) for _ in range(50)]
        batch = tokenizer([say(meaning, rng) or " " for meaning in wanted], return_tensors="pt", padding=True)
        out = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        weight = batch.attention_mask[..., None]
        said = (out[..., :MEANING_WIDTH] * weight).sum(1) / weight.sum(1)
        codes = torch.tensor([meaning.code for meaning in wanted])
        right += int(((said - codes).abs().amax(1) < 0.2).sum())
    return right / (count // 50 * 50)

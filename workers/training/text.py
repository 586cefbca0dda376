"""The tokenizer and the small `UMT5EncoderModel`, taught on its own to say what a caption means.

Every output token carries the caption's camera code in its first `CODE_WIDTH` channels, so the transformer's
cross-attention finds it wherever it looks. Words outside the vocabulary are <unk>, which training sprinkles in.
"""

import random
from typing import Final

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from workers.training.captions import CODE_WIDTH, MOTIONS, RATES, camera_code, caption, plain_prompt, vocabulary

TEXT_WIDTH: Final = 64
LONGEST: Final = 48
_HANZI: Final = "[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole English words and single Chinese characters; made from the grammar, nothing is downloaded."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    for word in vocabulary():
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
        vocab_size=vocabulary_size, d_model=TEXT_WIDTH, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return UMT5EncoderModel(config)


def draw_caption(rng: random.Random) -> tuple[str, tuple[float, ...]]:
    """A caption and its code: mostly a motion, sometimes only a subject, sometimes nothing, with stray words."""
    if rng.random() < 0.12:
        subject = caption(MOTIONS[-1], "normal", rng)
        said = [phrase for phrase in (*MOTIONS[-1].english, *MOTIONS[-1].chinese) if phrase in subject.lower()]
        bare = subject.lower().replace(max(said, key=len), "") if said else ""
        return ("" if rng.random() < 0.3 else f"{bare} qqq"), camera_code(None, "normal")
    motion, speed = rng.choice(MOTIONS), rng.choice(tuple(RATES))
    text = plain_prompt(motion, speed, rng.choice(("en", "zh"))) if rng.random() < 0.15 else caption(motion, speed, rng)
    if rng.random() < 0.3:
        text = f"{text} {'qqq ' * rng.randint(1, 4)}" if rng.random() < 0.5 else f"{'qqq ' * rng.randint(1, 4)}{text}"
    return text, camera_code(motion, speed)


def teach(encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerFast, *, steps: int, seed: int) -> float:
    """Train `encoder` in place to put the camera code into every token; returns the last running mean error."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(encoder.parameters(), 2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    running = 1.0
    encoder.train()
    for _ in range(steps):
        drawn = [draw_caption(rng) for _ in range(96)]
        batch = tokenizer([text for text, _ in drawn], return_tensors="pt", padding=True)
        target = torch.tensor([code for _, code in drawn])[:, None]
        out = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        error = F.mse_loss(out[..., :CODE_WIDTH], target.expand(-1, out.shape[1], -1), reduction="none").mean(-1)
        loss = (error * batch.attention_mask).sum() / batch.attention_mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = 0.98 * running + 0.02 * loss.item()
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
    """The share of freshly drawn captions whose decoded code is nearest to the right motion and speed."""
    rng = random.Random(seed)
    meanings = [(motion, speed) for motion in MOTIONS for speed in RATES if motion.moves or speed == "normal"]
    codes = torch.tensor([camera_code(motion, speed) for motion, speed in meanings])
    right = 0
    for _ in range(count // 50):
        wanted = [rng.choice(meanings) for _ in range(50)]
        texts = [caption(motion, speed, rng) for motion, speed in wanted]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        out = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        weight = batch.attention_mask[..., None]
        said = (out[..., :CODE_WIDTH] * weight).sum(1) / weight.sum(1)
        nearest = torch.cdist(said, codes).argmin(1)
        right += sum(meanings[index] == want for index, want in zip(nearest.tolist(), wanted, strict=True))
    return right / (count // 50 * 50)

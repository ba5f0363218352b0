"""A character model on text that every Python has, with attention at a fixed point.

``python examples/char_lm.py [epochs]``

The text is that of `help()`, pydoc_data.topics. Two models learn it that differ in one
thing, whether a head hears its own output: in the second, R = 0, attention is the usual
one-shot map. Beside them, a table of pairs of characters. Then the first model goes on
from a prompt, one character at a time, with caches.
"""

import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib
import numpy as np

import pyidl
from pyidl import optim, testing

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 3
OUTPUT = Path(__file__).parent / "output"
OUTPUT.mkdir(exist_ok=True)
CONTEXT, WIDTH, HEADS, BATCH, CHUNK = 48, 48, 3, 32, 4096
PROMPT = "The with statement is used to "


def windows(chunks, stride):
    """Stretches of CONTEXT characters, and the characters that follow each of them."""
    cut = np.concatenate(
        [
            np.lib.stride_tricks.sliding_window_view(c, CONTEXT + 1)[::stride]
            for c in chunks
            if len(c) > CONTEXT
        ]
    )
    return cut[:, :-1], cut[:, 1:]


def network(classes, ball):
    """Characters and places, one block, and a logit for every character.

    The same initial parameters whatever the ball, but for R.
    """
    rng = np.random.default_rng(0)
    return pyidl.Sequential(
        pyidl.Embedding(classes, WIDTH, rng=rng),
        pyidl.PositionEmbedding(CONTEXT, WIDTH, rng=rng),
        pyidl.ImplicitTransformerBlock(WIDTH, HEADS, block_size=CONTEXT, constraint=ball, rng=rng),
        pyidl.LayerNorm(WIDTH),
        pyidl.Linear(WIDTH, classes, rng=rng),
    )


def write(model, prompt, length, rng):
    """Characters drawn one after another, from numbers to numbers.

    A full context goes on from its second half.
    """
    said, cache, begun, read = list(prompt), model.start(1), 0, 0
    for _ in range(length):
        if len(said) - begun > CONTEXT:
            cache, begun, read = model.start(1), len(said) - CONTEXT // 2, len(said) - CONTEXT // 2
        for c in said[read:]:
            logits, cache = model.step([int(c)], cache)
        read = len(said)
        logits = pyidl.to_numpy(logits[0])
        p = np.exp(logits - logits.max()) ** (1 / 0.7)  # a temperature of 0.7
        said.append(int(rng.choice(len(p), p=p / p.sum())))
    return said


# some stand in several topics
paragraphs = dict.fromkeys(p for name in sorted(topics) for p in topics[name].split("\n\n"))
text = "\n\n".join(paragraphs)
letters = sorted(set(text))
number = {letter: i for i, letter in enumerate(letters)}
code = np.array([number[letter] for letter in text])
chunks = np.split(code, range(CHUNK, len(code), CHUNK))
seen, held_out = [c for i, c in enumerate(chunks) if i % 10], chunks[::10]
data, validation = windows(seen, CONTEXT // 2), windows(held_out, CONTEXT)
print(f"{len(text)} characters, {len(letters)} different ones; {validation[1].size} held out")

pairs = np.full((len(letters), len(letters)), 0.1)
for c in seen:
    np.add.at(pairs, (c[:-1], c[1:]), 1)
table = -np.log(pairs / pairs.sum(axis=1, keepdims=True))
print(f"pairs of characters: validation perplexity {np.exp(table[validation].mean()):.2f}")

# A ball of radius 1e-12 leaves no feedback: what remains is 0 to the precision of float32.
models = {"feedback": pyidl.AttentionBall(0.95), "R = 0": pyidl.AttentionBall(1e-12)}
histories = {}
for name, ball in models.items():
    model = models[name] = network(len(letters), ball)
    steps = EPOCHS * -(-len(data[0]) // BATCH)
    began = time.perf_counter()
    histories[name] = pyidl.fit(
        model,
        data,
        loss="cross_entropy",
        optimizer=optim.AdamW(
            optim.Cosine(3e-3, steps=steps, warmup=100), weight_decay=0.1, clip_norm=1.0
        ),
        epochs=EPOCHS,
        batch_size=BATCH,
        validation=validation,
        rng=0,
    )
    seconds, count = time.perf_counter() - began, sum(p.size for p in model.params.values())
    perplexity, solve = np.exp(histories[name]["val_loss"][-1]), histories[name]["steps"][-1]
    print(
        f"{name}: validation perplexity {perplexity:.3f}, {count} parameters, {seconds:.0f} s, "
        f"{solve:.1f} steps a solve"
    )

model = models["feedback"]
print(model.certificate())
tokens = validation[0][:2, :8]
print(
    "worst gradient error against central differences (float64): "
    f"{testing.check_pullback(model, tokens).max_error:.1e}"
)
began = time.perf_counter()
said = write(model, [number[c] for c in PROMPT], 300, np.random.default_rng(0))
print(
    f"{300 / (time.perf_counter() - began):.0f} characters a second:\n"
    f"{'-' * 80}\n{''.join(letters[c] for c in said)}\n{'-' * 80}"
)

norm, head = model.layers[2].layers[0].layers[:2]
tokens = [[number[c] for c in PROMPT]]
embedded = model.layers[1].predict(model.layers[0].predict(tokens))
_, pull = head(norm.predict(embedded))
figure, axes = plt.subplots(2, 2, figsize=(9, 8.5), layout="constrained")
*maps, curve = axes.flat
for h, axis in enumerate(maps):
    weights = pyidl.to_numpy(pull.weights()[0, h])
    image = axis.imshow(weights, cmap="magma", vmin=0, vmax=0.5)
    axis.set(title=f"head {h + 1} at its fixed point")
    axis.set(xlabel="character that is seen", ylabel="character that looks")
    axis.set_xticks(range(len(PROMPT)), PROMPT)
    axis.set_yticks(range(len(PROMPT)), PROMPT)
    axis.tick_params(length=0, labelsize=8)
for name, history in histories.items():
    curve.plot(history["epoch"], np.exp(history["val_loss"]), "o-", label=name)
figure.colorbar(image, ax=maps, label="weight of attention", extend="max", shrink=0.6)
curve.set(xlabel="epoch", ylabel="validation perplexity", xticks=histories["R = 0"]["epoch"])
curve.set(title="with feedback, and without (R = 0)")
curve.legend()
figure.suptitle("A character model of the text of help(): where its heads look, how it learns")
figure.savefig(OUTPUT / "char_lm.png", dpi=100)

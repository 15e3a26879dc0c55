"""Two models in one process; one gets a new version while it serves, and is rolled back.

python -m examples.digits.swap models/        (trains what is missing there, a few seconds)
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np

from embedserve import ModelRegistry
from examples.digits.train import as_mnist, export, load_digits, train


def train_mnist_style(version_directory: Path) -> None:
    """The classic: flatten 28x28, dense 128, softmax over ten digits; exported with Keras's own `model.export`."""
    import keras

    digits = load_digits()
    model = keras.Sequential(
        [
            keras.Input((28, 28), name="image"),
            keras.layers.Rescaling(1 / 16),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10, activation="softmax", name="probabilities"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(as_mnist(digits.images), digits.labels, batch_size=32, epochs=3, verbose=0)
    model.export(version_directory, verbose=False)


async def serving_version(registry: ModelRegistry, name: str, version: int) -> None:
    while True:
        async with registry.acquire(name) as handle:
            if handle.version == version:
                return
        await asyncio.sleep(0.05)


async def main(models: Path) -> None:
    if not (models / "digits/1").exists():
        export(train(hidden=8, epochs=4), models / "digits/1")
    if not (models / "mnist/1").exists():
        train_mnist_style(models / "mnist/1")

    digits = load_digits()
    async with ModelRegistry(models) as registry:
        print("models:", *registry.models())

        async def accuracy() -> str:
            async with registry.acquire("digits") as handle:
                out = await handle.predict({"pixels": digits.held_out_images})
                return f"version {handle.version} is right on {np.mean(out['digit'] == digits.held_out_labels):.0%}"

        print("digits:", await accuracy())

        # A new version is nothing more than a new directory; requests go on meanwhile.
        better = await asyncio.to_thread(train, 32, 10)
        await asyncio.to_thread(export, better, models / "digits/2")
        await serving_version(registry, "digits", 2)
        print("digits:", await accuracy())

        await registry.pin("digits", 1)
        print("digits:", await accuracy(), "(rolled back)")

        both = await asyncio.gather(
            registry.predict("digits", {"pixels": digits.held_out_images[:5]}),
            registry.predict("mnist", as_mnist(digits.held_out_images[:5])),
        )
        print("digits says", both[0]["digit"], "and mnist", next(iter(both[1].values())).argmax(axis=1))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

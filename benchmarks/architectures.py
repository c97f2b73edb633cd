"""The shapes of the parameters of two well-known models, from the formulas of their papers."""

from __future__ import annotations

from collections.abc import Iterator

Shape = tuple[int, ...]


def resnet_50(classes: int = 1000) -> Iterator[Shape]:
    """Yield ResNet-50's, in torchvision's order: a stem, 3 + 4 + 6 + 3 bottlenecks, a classifier.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1. Each
    convolution, without a bias, is followed by the scale and the shift of its normalisation.
    """
    yield from _convolution(3, 64, 7)
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            yield from _convolution(channels, width, 1)
            yield from _convolution(width, width, 3)
            yield from _convolution(width, 4 * width, 1)
            if block == 0:
                yield from _convolution(channels, 4 * width, 1)
            channels = 4 * width
    yield from _linear(channels, classes)


def gpt_2(
    layers: int = 12, width: int = 768, vocabulary: int = 50_257, context: int = 1024
) -> Iterator[Shape]:
    """Yield those of GPT-2, by default small, with its output tied to the embedding of words.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, table 2.
    """
    yield vocabulary, width
    yield context, width
    for _ in range(layers):
        yield from _norm(width)
        yield from _projection(width, 3 * width)
        yield from _projection(width, width)
        yield from _norm(width)
        yield from _projection(width, 4 * width)
        yield from _projection(4 * width, width)
    yield from _norm(width)


def _convolution(inputs: int, outputs: int, size: int) -> Iterator[Shape]:
    yield outputs, inputs, size, size
    yield from _norm(outputs)


def _norm(width: int) -> Iterator[Shape]:
    yield (width,)
    yield (width,)


def _linear(inputs: int, outputs: int) -> Iterator[Shape]:
    yield outputs, inputs
    yield (outputs,)


def _projection(inputs: int, outputs: int) -> Iterator[Shape]:
    yield inputs, outputs
    yield (outputs,)

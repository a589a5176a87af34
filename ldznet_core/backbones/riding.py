"""Concepts that ride along with the picture's own prompt (ConceptAttention, Helbling et al., ICML 2025).

The prompt's context is the caption's rows, then the concepts'. Image and caption attend to each other alone, so that
the picture is computed as without concepts. The concepts attend to themselves and to the image. Tensors in, tensors
out.
"""

import torch
from torch import Tensor

from .joint import BlockAttention, Call, Layout, joined, mean_outputs


def ride(layout: Layout, call: Call, wanted: bool) -> tuple[Tensor, BlockAttention | None]:
    """The output of a call of attention whose context ends in concepts that ride along and, where it is wanted and the
    call is between image and prompt, what it shows of them."""
    queries, keys = call.sizes
    places = layout.places(queries, keys)
    if places is None:
        return text_alone(layout, call), None
    image, first = places
    start, end = first + layout.concepts.caption, first + layout.concepts.length  # of the riders
    every = torch.arange(max(queries, keys), device=call.q.device)
    riders, positions = every[start:end], every[image]
    tokens = [[row - layout.concepts.caption for row in rows] for rows in layout.concepts.tokens]  # among riders
    if layout.order == "cross":
        output = call.part(every[:queries], torch.cat([every[:start], every[end:keys]])).output()
        if not wanted:
            return output, None
        share = call.part(positions, riders).shares(tokens)
        return output, BlockAttention(share, joined(output)[:, image].clone(), None)
    others, seen = torch.cat([every[:start], every[end:]]), torch.cat([riders, positions])
    of_others, of_riders = call.part(others, others).output(), call.part(riders, seen).output()
    dim = 1 if of_others.ndim == 3 else 2
    before, after = of_others.tensor_split([start], dim)
    output = torch.cat([before, of_riders, after], dim)
    if not wanted:
        return output, None
    share = call.part(positions, seen).shares(tokens)
    text = mean_outputs(joined(of_riders), tokens)
    return output, BlockAttention(share, joined(output)[:, image].clone(), text)


def text_alone(layout: Layout, call: Call) -> Tensor:
    """The output of a call that is not between image and prompt. Where it runs over the prompt's rows, as in a network
    that refines its text first, caption and concepts do not see each other."""
    queries, keys = call.sizes
    if queries != keys or queries != layout.concepts.length or queries == layout.filled:
        return call.output()
    parts = torch.arange(queries, device=call.q.device).tensor_split([layout.concepts.caption])
    outputs = [call.part(rows, rows).output() for rows in parts]
    return torch.cat(outputs, dim=1 if outputs[0].ndim == 3 else 2)


"""What a decoder is, in lines for people: made from what its file says of itself."""

from collections.abc import Mapping

from .base import Decoder, DecoderInfo


def describe(decoder: Decoder) -> str:
    """Kind, family, size, training data and scores of a loaded decoder, a line each."""
    info, parameters = decoder.info, sum(p.numel() for p in decoder.parameters())
    if info is None:
        return f"{decoder.kind}: untrained, {parameters / 1e6:.1f} M parameters"
    side = round(info.pixels**0.5)
    fits = f"for models of family {info.family}, context width {decoder.backbone_config.context_dim}"
    lines = [f"{decoder.kind} {fits}", f"{parameters / 1e6:.1f} M parameters, pictures of {side} x {side} pixels"]
    lines.append(training(info))
    lines += [f"mIoU {scores['miou']:.3f} ({name})" for name, scores in rows(info.metrics).items()]
    if lines[-1] == training(info):
        lines.append("no scores in its file")
    return "\n".join(lines)


def training(info: DecoderInfo) -> str:
    """What it was trained on, and for how long."""
    data, steps = info.training.get("data", "unknown data"), info.training.get("steps")
    if isinstance(data, Mapping):
        data = f"{data.get('spec', 'unknown data')}, {data.get('examples', '?')} examples"
    return f"trained on {data}" + (f", {steps} steps" if steps else "")


def rows(metrics: Mapping) -> dict[str, Mapping]:
    """The scores that have an mIoU, by the name of their data."""
    return {
        name: scores
        for name, scores in metrics.items()
        if isinstance(scores, Mapping) and isinstance(scores.get("miou"), int | float)
    }

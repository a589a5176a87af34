"""The ComfyUI nodes: what users see and set. Each declares itself and makes one call into the core."""

from comfy_api.latest import ComfyExtension, io

from .attention import LDZNetAttentionMask
from .capture import LDZNetCapture, LDZNetSegmentCaptured
from .labels import LDZNetLabelMap
from .load import LDZNetLoadDecoder, LDZNetLoadMini, register_folder
from .refine import LDZNetRefineMask
from .segment import LDZNetSegment
from .segs import LDZNetMasksToSEGS
from .steer import LDZNetConditioningSetWords

NODES = [
    LDZNetLoadMini,
    LDZNetLoadDecoder,
    LDZNetSegment,
    LDZNetCapture,
    LDZNetSegmentCaptured,
    LDZNetAttentionMask,
    LDZNetLabelMap,
    LDZNetRefineMask,
    LDZNetMasksToSEGS,
    LDZNetConditioningSetWords,
]


class LDZNetExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> LDZNetExtension:
    register_folder()
    return LDZNetExtension()

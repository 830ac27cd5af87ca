"""Convolutions that onnxruntime runs itself on the CPU: it puts images into blocks of channels, and makes copies for that.

Its NchwcTransformer (core/optimizer/nchwc_transformer.cc) gives such a convolution a copy of its input in blocks, and copies
its output back, unless the next one reads blocks as well; channels are rounded up to whole blocks. The copies count for as
much memory as the images.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from edgegen.graphs.nodes import Constant, Node
from edgegen.planner.shapes import Form

BLOCK = 16  # channels: MlasNchwcGetBlockSize with AVX-512 and on ARM64; 8 with AVX2

_FLOAT32 = 1  # TensorProto.DataType
_STANDARD = (b"", b"ai.onnx")


def in_blocks(
    nodes: Iterable[Node], forms: Mapping[bytes, Form], constants: Mapping[bytes, Constant]
) -> tuple[list[Node], dict[bytes, Form]]:
    """The nodes with the copies that onnxruntime makes, and the forms with those of the copies."""
    nodes, made = list(nodes), dict(forms)
    taken = {place for place, node in enumerate(nodes) if _is_taken(node, forms, constants)}
    uses = Counter(name for node in nodes for name in node.inputs)
    read_in_blocks = Counter(nodes[place].inputs[0] for place in taken)
    found: list[Node] = []
    for place, node in enumerate(nodes):
        if place not in taken:
            found.append(node)
            continue
        source, result = node.inputs[0], node.outputs[0]
        blocked_in, blocked_out = source + b" in blocks", result + b" in blocks"
        if forms[source].shape[1] < BLOCK:  # an image of few channels is read as it is
            blocked_in = source
        elif blocked_in not in made:
            made[blocked_in] = _rounded(forms[source])
            found.append(_copy(b"ReorderInput", source, blocked_in))
        made[blocked_out] = _rounded(forms[result])
        found.append(node._replace(inputs=(blocked_in, *node.inputs[1:]), outputs=(blocked_out,)))
        if not uses[result] or uses[result] > read_in_blocks[result]:
            found.append(_copy(b"ReorderOutput", blocked_out, result))
    return found, made


def _is_taken(node: Node, forms: Mapping[bytes, Form], constants: Mapping[bytes, Constant]) -> bool:
    if node.operator not in (b"Conv", b"FusedConv") or node.domain not in (*_STANDARD, b"com.microsoft"):
        return False
    weights, image, result = constants.get(node.inputs[1]), forms.get(node.inputs[0]), forms.get(node.outputs[0])
    if weights is None or image is None or result is None or len(weights.shape) != 4 or len(image.shape) != 4:
        return False
    return weights.dtype == _FLOAT32 and node.attributes.get(b"group", 1) == 1


def _rounded(form: Form) -> Form:
    batch, channels, *sides = form.shape
    return Form(form.dtype, (batch, -(-channels // BLOCK) * BLOCK, *sides))


def _copy(operator: bytes, source: bytes, result: bytes) -> Node:
    return Node(operator, b"com.microsoft.nchwc", (source,), (result,), {}, b"")

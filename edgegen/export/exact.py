"""The same graph without rounded activations: what tells a wrong graph from an imprecise kernel.

The integer kernels of onnxruntime round activations to 8 bits, which hides small mistakes below a wide tolerance. With
`accuracy_level` 1 the same nodes compute in float32: then the graph must agree with PyTorch to float32's own precision.
"""

from pathlib import Path

import onnx_ir as ir

from edgegen.backends.ort.session import OrtSession
from edgegen.bundle import Bundle
from edgegen.proof.decoder_lm import TOLERANCES, Fidelity, read_proof, replay

EXACT = 1  # MatMulNBits: accumulate in float32


def exact_fidelity(bundle: Bundle, directory: Path, graph: str, variant: str) -> Fidelity:
    """Replay the proof of one variant with every MatMulNBits computing in float32."""
    files = bundle.graph(graph, variant)
    model = ir.load(directory / files.variant.path)
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", EXACT)
    content = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    _, reference = read_proof(bundle)
    with OrtSession(content, files.weights, files.variant, files.axes) as session:
        return replay(session, reference, f"{variant}, exact", "float32", TOLERANCES["float32"])

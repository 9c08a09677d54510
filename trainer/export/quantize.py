"""A GGUF file in 16 or 32 bits, quantized tensor by tensor as llama.cpp's llama-quantize mixes its types.

Which tensor gets which type: llama.cpp, src/llama-quant.cpp, llama_tensor_get_type. Blocks are made by gguf's numpy
code, K-quants by libgguf. Without importance matrix.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

# Types that --quant takes, with the type of most tensors and llama.cpp's name for the file
PLAIN = {"q8_0": "Q8_0", "q5_1": "Q5_1", "q5_0": "Q5_0", "q4_1": "Q4_1", "q4_0": "Q4_0"}
K_QUANTS = {"q6_k": "Q6_K", "q5_k_m": "Q5_K", "q5_k_s": "Q5_K", "q4_k_m": "Q4_K", "q4_k_s": "Q4_K", "q3_k_m": "Q3_K"}
QUANTS = (*PLAIN, *K_QUANTS)
FILE_TYPES = {"q6_k": "MOSTLY_Q6_K"} | {
    name: f"MOSTLY_{name.upper()}" for name in (*PLAIN, *K_QUANTS) if name != "q6_k"
}
K_BLOCK = 256  # weights; rows of other widths get the next type that takes them
FALLBACK = {"Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
ROWS_AT_ONCE = 2**26  # weights that are quantized at once, in float32
BLOCK = re.compile(r"blk\.(\d+)\.")


def quantize(source: Path, out: Path, quant: str) -> None:
    """Write `source`, a GGUF file in f16, bf16 or f32, to `out` with its weights as `quant`; keys are copied.

    Raises: KeyError where `quant` is not of QUANTS.
    """
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    architecture = str(reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
    writer = gguf.GGUFWriter(out, architecture)
    for field in reader.fields.values():
        if field.name == gguf.Keys.General.ARCHITECTURE or field.name.startswith("GGUF."):
            continue
        value: Any = field.contents()
        if field.name == gguf.Keys.General.FILE_TYPE:
            value = int(gguf.LlamaFileType[FILE_TYPES[quant]])
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, kind, sub_type=sub_type)
    num_layers = int(reader.fields[f"{architecture}.block_count"].contents())
    is_tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    chosen: list[GGMLQuantizationType | None] = []
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        kind = type_of(tensor.name, shape, quant, num_layers=num_layers, is_tied=is_tied)
        chosen.append(kind)
        if kind is None:
            writer.add_tensor_info(
                tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type
            )
        else:
            row_bytes = gguf.quant_shape_to_byte_shape(shape, kind)
            num_bytes = math.prod(row_bytes)
            writer.add_tensor_info(tensor.name, row_bytes, np.dtype(np.uint8), num_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, kind in zip(reader.tensors, chosen, strict=True):
        writer.write_tensor_data(tensor.data if kind is None else _quantized(tensor, kind))
    writer.close()


def type_of(name: str, shape: list[int], quant: str, *, num_layers: int, is_tied: bool) -> GGMLQuantizationType | None:
    """The type of a tensor, None where it stays as it is: norms, biases, and whatever has one dimension.

    shape: rows first. is_tied: the embedding is the head too.
    """
    import gguf

    if len(shape) < 2 or not name.endswith(".weight") or "_norm" in name or "ffn_gate_inp" in name:
        return None
    kind = PLAIN.get(quant) or _mixed(name, quant, num_layers=num_layers, is_tied=is_tied)
    if quant in PLAIN and (name == "output.weight" or (is_tied and name == "token_embd.weight")):
        kind = "Q8_0"
    if shape[-1] % K_BLOCK and kind in FALLBACK:
        kind = FALLBACK[kind]
    return None if shape[-1] % 32 else gguf.GGMLQuantizationType[kind]


def _mixed(name: str, quant: str, *, num_layers: int, is_tied: bool) -> str:
    """Of a K-quant: head, values and the second feed-forward matrix have more bits, in some layers or all."""
    most = K_QUANTS[quant]
    if name == "output.weight" or (is_tied and name == "token_embd.weight"):
        return "Q6_K"
    match = BLOCK.match(name)
    if match is None or quant == "q6_k":
        return most
    layer = int(match[1])
    more = layer < num_layers // 8 or layer >= 7 * num_layers // 8 or (layer - num_layers // 8) % 3 == 2
    if "attn_v" in name:
        if quant in ("q4_k_m", "q5_k_m"):
            return "Q6_K" if more else most
        if quant == "q4_k_s":
            return "Q5_K" if layer < 4 else most
        if quant == "q3_k_m":
            return "Q5_K" if layer < 2 else "Q4_K"
    if "attn_qkv" in name:
        return {"q4_k_m": "Q5_K", "q5_k_m": "Q6_K", "q3_k_m": "Q4_K"}.get(quant, most)
    if "ffn_down" in name:
        if quant in ("q4_k_m", "q5_k_m"):
            return "Q6_K" if more else most
        if quant == "q4_k_s":
            return "Q5_K" if layer < num_layers // 8 else most
        if quant == "q3_k_m":
            return "Q5_K" if layer < num_layers // 16 else "Q4_K"
    return "Q4_K" if quant == "q3_k_m" and "attn_output" in name else most


def _quantized(tensor: Any, kind: GGMLQuantizationType) -> Any:
    """Bytes of a tensor's rows in that type, some rows at a time."""
    import gguf
    import numpy as np

    rows = tensor.data
    width = int(tensor.shape[0])
    step = max(1, ROWS_AT_ONCE // width)
    pieces = []
    for first in range(0, rows.shape[0], step):
        block = np.ascontiguousarray(gguf.dequantize(rows[first : first + step], tensor.tensor_type), dtype=np.float32)
        if kind.name.endswith("_K"):
            import libgguf

            pieces.append(libgguf.quantize_rows(block, int(kind)))
        else:
            pieces.append(gguf.quantize(block, kind))
    return np.concatenate(pieces)

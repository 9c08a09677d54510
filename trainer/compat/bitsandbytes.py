"""Hooks into bitsandbytes."""

from __future__ import annotations

from autoft.hooks import Table

TABLE = Table("bitsandbytes")

# Replaced during a rehearsal
MATMUL = TABLE.hook(
    "bitsandbytes:matmul",
    "(A, B, out=None, state=None, threshold=0.0, bias=None)",
    "which product of 8-bit weights it takes depends on the device",
    "planner/kernels/dispatch.py",
)
INT8_ROWS = TABLE.hook(
    "bitsandbytes.functional:int8_vectorwise_quant",
    "(A, threshold=0.0)",
    "how many columns have outliers is not known on meta",
    "planner/kernels/dispatch.py",
)
INT8_PRODUCT = TABLE.hook(
    "torch.ops:bitsandbytes.int8_mixed_scaled_mm",
    "(A, CA, CB, SCA, SCB, outlier_cols, bias)",
    "as int8_vectorwise_quant",
    "planner/kernels/dispatch.py",
)
SYNC_GPU = TABLE.hook(
    "bitsandbytes.optim.optimizer:sync_gpu",
    "(t)",
    "a rehearsal has no device to wait for",
    "planner/rehearsal/optimizer.py",
)
TABLE.hook(
    "bitsandbytes.optim.optimizer:Optimizer8bit.to_gpu",
    "(self)",
    "a rehearsal has no device to move state to",
    "planner/rehearsal/optimizer.py",
)
TABLE.hook(
    "bitsandbytes.optim.optimizer:Optimizer8bit.get_state_buffer",
    "(self, p, dtype=...)",
    "overridden: paged state lies outside the device's allocator, and is used again",
    "planner/rehearsal/optimizer.py",
    "trainer/optimizers/paged.py",
)
TABLE.hook(
    "bitsandbytes.optim.optimizer:Optimizer8bit.load_state_dict",
    "(self, state_dict, move_to_device=True)",
    "overridden: a loaded state stays paged",
    "trainer/optimizers/paged.py",
    attributes=("move_to_device",),
)
TABLE.hook(
    "bitsandbytes.functional:get_paged",
    "(*shape, dtype=..., device=...)",
    "the mark of a paged tensor",
    "trainer/optimizers/paged.py",
    attributes=("is_paged",),
)

# Operations whose scratch memory or arithmetic the planner knows
TABLE.hook(
    "torch.ops:bitsandbytes.gemm_4bit",
    "(A, B, shapeB, absmax, blocksize, quant_type, bias, absmax_8bit, absmax_code, absmax_offset)",
    "its scratch memory and arithmetic",
    "planner/kernels/dispatch.py",
    "planner/tracing/work.py",
)
TABLE.hook(
    "torch.ops:bitsandbytes.dequantize_4bit",
    "(A, absmax, blocksize, quant_type, shape, dtype)",
    "its arithmetic",
    "planner/tracing/work.py",
)
TABLE.hook(
    "torch.ops:bitsandbytes.dequantize_blockwise",
    "(A, absmax, code, blocksize, dtype)",
    "its arithmetic",
    "planner/tracing/work.py",
)
TABLE.hook(
    "torch.ops:bitsandbytes.optimizer_update_8bit_blockwise",
    "(optimizer_name, g, p, state1, state2, beta1, beta2, beta3, alpha, eps, step, lr, qmap1, qmap2, absmax1, absmax2, "
    "weight_decay, gnorm_scale, skip_zeros)",
    "its scratch memory on a CPU",
    "planner/kernels/dispatch.py",
)
TABLE.hook(
    "bitsandbytes.autograd._functions:MatMul8bitLt.forward",
    "(ctx, A, B, out=None, bias=None, state=None)",
    "called; it holds its inputs until the backward, which a frozen weight does not need",
    "planner/kernels/dispatch.py",
    "trainer/model/build.py",
    attributes=("tensors",),
)
TABLE.hook(
    "bitsandbytes.autograd._functions:MatMul8bitFp.forward",
    "(ctx, A, B, out=None, bias=None, state=...)",
    "as MatMul8bitLt",
    "planner/kernels/dispatch.py",
    "trainer/model/build.py",
    attributes=("A",),
)

# Layers and their state, which are made and read as bitsandbytes makes them
TABLE.hook(
    "bitsandbytes.nn:Params4bit.__new__",
    "(cls, data=None, requires_grad=False, quant_state=None, blocksize=None, compress_statistics=True, "
    "quant_type='fp4', quant_storage=..., module=None, bnb_quantized=False, **kwargs)",
    "packed weights without storage",
    "trainer/model/build.py",
)
TABLE.hook(
    "bitsandbytes.nn:Int8Params.__new__",
    "(cls, data=None, requires_grad=True, has_fp16_weights=False, CB=None, SCB=None, **kwargs)",
    "rounded weights without storage, and their scales",
    "trainer/model/build.py",
    "trainer/checks/reference_loss.py",
    attributes=("CB", "SCB"),
)
TABLE.hook(
    "bitsandbytes.nn:Linear8bitLt.init_8bit_state",
    "(self)",
    "as loading does it",
    "trainer/model/build.py",
)
TABLE.hook(
    "bitsandbytes.autograd._functions:MatmulLtState",
    "(force_no_igemmlt=False, CB=None, SB=None, SCB=None, SBt=None, CBt=None, subB=None, outlier_pool=None, idx=None)",
    "scales of an 8-bit layer, and whether it trains",
    "planner/rehearsal/loading.py",
    "planner/kernels/dispatch.py",
    "trainer/checks/reference_loss.py",
    attributes=("SCB", "is_training"),
)
TABLE.hook(
    "bitsandbytes.nn:Linear4bit",
    "(input_features, output_features, bias=True, compute_dtype=None, compress_statistics=True, quant_type='fp4', "
    "quant_storage=..., device=None)",
    "weights must not be packed again on a CPU with AVX-512; biases are cast at the first call",
    "trainer/model/build.py",
    "planner/rehearsal/step.py",
    attributes=("support_avx512bf16_for_cpu", "compute_dtype"),
)
TABLE.hook(
    "bitsandbytes.functional:QuantState",
    "(absmax, shape=None, code=None, blocksize=None, quant_type=None, dtype=None, offset=None, state2=None)",
    "the state of packed weights, made without storage and read",
    "trainer/model/experts.py",
    "trainer/checks/reference_loss.py",
    "planner/rehearsal/loading.py",
    attributes=("absmax", "blocksize", "code", "dtype", "nested", "offset", "shape", "state2"),
)
TABLE.hook(
    "bitsandbytes.functional:quantize_4bit",
    "(A, absmax=None, out=None, blocksize=None, compress_statistics=False, quant_type='fp4', quant_storage=...)",
    "experts are packed by it",
    "trainer/model/experts.py",
)
TABLE.hook(
    "bitsandbytes.functional:dequantize_4bit",
    "(A, quant_state=None, absmax=None, out=None, blocksize=None, quant_type='fp4')",
    "experts are unpacked by it",
    "trainer/model/experts.py",
)
TABLE.hook(
    "bitsandbytes.nn.parametrize:Bnb4bitParametrization",
    "(quant_state)",
    "experts are unpacked while a layer reads them; forward is overridden",
    "trainer/model/experts.py",
    attributes=("forward", "quant_state"),
)
FUSED_PRODUCT = TABLE.hook(
    "bitsandbytes.backends.cuda.ops:_gemm_4bit_use_custom_cuda",
    "(device_index, dtype, M, N, K)",
    "planner/kernels/four_bit.py repeats it: the module can be imported only where PyTorch is built for CUDA",
    "planner/kernels/four_bit.py",
    source="ac602d314baf0b41",
)

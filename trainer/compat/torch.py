"""Hooks into PyTorch."""

from __future__ import annotations

from autoft.hooks import Table

TABLE = Table("torch")

# What autograd and the dispatcher do not show
RUN_BACKWARD = TABLE.hook(
    "torch.autograd.graph:_engine_run_backward",
    "(t_outputs, *args, **kwargs)",
    "loss.backward() is a torch function itself and would run outside of Kernels",
    "planner/rehearsal/step.py",
)
TABLE.hook(
    "torch.utils._python_dispatch:TorchDispatchMode",
    "(_dispatch_key=None)",
    "Trace is one: it sees every operation",
    "planner/tracing/trace.py",
    attributes=("__torch_dispatch__",),
)
TABLE.hook(
    "torch.utils._python_dispatch:TorchDispatchMode._should_skip_dynamo",
    "()",
    "overridden: to be kept out of dynamo costs more than an operation",
    "planner/tracing/trace.py",
)
CURRENT_MODE = TABLE.hook(
    "torch.utils._python_dispatch:_get_current_dispatch_mode",
    "()",
    "what a kernel of the real device does is counted by the trace that looks on",
    "planner/tracing/trace.py",
)
NO_MODES = TABLE.hook(
    "torch.utils._python_dispatch:_disable_current_modes",
    "()",
    "what the device does not do must not be traced",
    "planner/tracing/trace.py",
)
NO_TORCH_FUNCTION = TABLE.hook(
    "torch._C:DisableTorchFunction",
    "",
    "operations of a trace must not come to Kernels a second time",
    "planner/tracing/trace.py",
)
TABLE.hook(
    "torch:UntypedStorage._cdata",
    "",
    "identifies a storage, for which Python may have several objects",
    "planner/tracing/trace.py",
    "planner/tracing/op_cache.py",
)
TABLE.hook(
    "torch:Tensor._use_count",
    "",
    "autograd adds in place to a gradient that is held once",
    "planner/tracing/trace.py",
)
STORAGE_USE_COUNT = TABLE.hook(
    "torch._C:_storage_Use_Count",
    "",
    "as Tensor._use_count, of storages",
    "planner/tracing/trace.py",
)
TABLE.hook(
    "torch._ops:OpOverload",
    "(overloadpacket, op, op_dk, schema, tags)",
    "whether an operation writes, makes a view, and what it is called",
    "planner/tracing/trace.py",
    "planner/tracing/op_cache.py",
    "planner/tracing/work.py",
    attributes=("_schema", "is_view", "overloadpacket"),
)
TABLE.hook(
    "torch.utils.flop_counter:flop_registry",
    "",
    "arithmetic of products, by operation",
    "planner/tracing/work.py",
)
FLATTEN_TREE = TABLE.hook(
    "torch.utils._pytree:tree_flatten",
    "(tree, is_leaf=None)",
    "a layer's reference code is run as one operation on the tensors among its arguments",
    "planner/tracing/reference_code.py",
)
UNFLATTEN_TREE = TABLE.hook(
    "torch.utils._pytree:tree_unflatten",
    "(leaves, treespec)",
    "the way back from tree_flatten",
    "planner/tracing/reference_code.py",
)

# Replaced during a rehearsal, since meta tensors have neither values nor a device's kernels
RNG_STATE = TABLE.hook(
    "torch:get_rng_state",
    "()",
    "checkpoints keep the state of the CPU's generator, which takes memory",
    "planner/rehearsal/step.py",
)
CLEAR_AUTOCAST_CACHE = TABLE.hook(
    "torch:clear_autocast_cache",
    "",
    "casts that autocast keeps are kept by Kernels",
    "planner/kernels/dispatch.py",
)
AUTOCAST_ENABLED = TABLE.hook(
    "torch:is_autocast_enabled",
    "",
    "autocast knows no meta device: answered for the CPU",
    "planner/kernels/dispatch.py",
)
AUTOCAST_DTYPE = TABLE.hook(
    "torch:get_autocast_dtype",
    "",
    "as is_autocast_enabled",
    "planner/kernels/dispatch.py",
)
AUTOCAST_INIT = TABLE.hook(
    "torch:autocast.__init__",
    "(self, device_type, dtype=None, enabled=True, cache_enabled=None)",
    "as is_autocast_enabled",
    "planner/kernels/dispatch.py",
)
META_GROUPED_MM = TABLE.hook(
    "torch._meta_registrations:_meta_grouped_mm_common",
    "(mat_a, mat_b, scale_a, scale_b, offs=None, bias=None, scale_result=None, out_dtype=None, use_fast_accum=False)",
    "on meta a product of experts refuses dtypes that devices take",
    "planner/kernels/dispatch.py",
)
FUSED_CHECK = TABLE.hook(
    "torch.optim.adam:_device_dtype_check_for_fused",
    "(p, cuda_unsupported=False)",
    "fused optimizers refuse meta tensors",
    "planner/rehearsal/optimizer.py",
)
DEVICE_CAPABILITY = TABLE.hook(
    "torch.cuda:get_device_capability",
    "(device=None)",
    "bitsandbytes asks for it while it is imported, which would create a context on the GPU",
    "trainer/runtime/environment.py",
)
COMPILE = TABLE.hook(
    "torch:compile",
    "(model=None, ...)",
    "bitsandbytes calls it while it is imported, which would import the compiler",
    "trainer/runtime/environment.py",
)

# Tensors of modules that state_dict leaves out or renames
TABLE.hook(
    "torch.nn:Module",
    "(*args, **kwargs)",
    "every tensor of a module, stored or not",
    "planner/rehearsal/layers.py",
    "planner/rehearsal/loading.py",
    attributes=("_parameters", "_buffers", "_non_persistent_buffers_set"),
)

# Operations that are called or recognized by name
TABLE.hook("torch:_foreach_norm", "", "gradients are clipped at once, as on a GPU", "planner/rehearsal/optimizer.py")
TABLE.hook("torch:_foreach_mul_", "", "gradients are clipped at once, as on a GPU", "planner/rehearsal/optimizer.py")
TABLE.hook(
    "torch.ops:aten._foreach_norm.Scalar",
    "(self, ord, dtype)",
    "its scratch memory, and its results on meta",
    "planner/kernels/dispatch.py",
    "planner/tracing/trace.py",
)
TABLE.hook("torch.ops:aten._foreach_sqrt", "(self)", "its results on meta", "planner/tracing/trace.py")
TABLE.hook(
    "torch.ops:aten._softmax_backward_data",
    "(grad_output, output, dim, input_dtype)",
    "its scratch memory",
    "planner/kernels/dispatch.py",
)
TABLE.hook(
    "torch.ops:aten._safe_softmax",
    "(self, dim, dtype)",
    "its scratch memory; attention written out calls it",
    "planner/kernels/dispatch.py",
    "planner/kernels/attention.py",
)
TABLE.hook(
    "torch.ops:aten._index_put_impl_",
    "(self, indices, values, accumulate, unsafe)",
    "its scratch memory; backwards of masked rows call it",
    "planner/kernels/dispatch.py",
    "planner/tracing/trace.py",
)
TABLE.hook(
    "torch.ops:aten._scaled_dot_product_flash_attention_for_cpu",
    "(query, key, value, dropout_p, is_causal, attn_mask, scale)",
    "attention on a CPU, its scratch memory and arithmetic",
    "planner/kernels/dispatch.py",
    "planner/tracing/work.py",
)
TABLE.hook(
    "torch.ops:aten._scaled_dot_product_flash_attention_for_cpu_backward",
    "(grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, attn_mask, scale)",
    "its scratch memory and arithmetic",
    "planner/kernels/dispatch.py",
    "planner/tracing/work.py",
)
TABLE.hook(
    "torch.ops:aten._grouped_mm", "(self, mat2, offs, bias, out_dtype)", "its arithmetic", "planner/tracing/work.py"
)
TABLE.hook("torch.ops:aten._unsafe_view", "(self, size)", "launches no kernel", "planner/tracing/work.py")
TABLE.hook("torch.ops:aten._reshape_alias", "(self, size, stride)", "launches no kernel", "planner/tracing/work.py")
TABLE.hook("torch.ops:aten._local_scalar_dense", "(self)", "launches no kernel", "planner/tracing/work.py")

# Several processes
TABLE.hook(
    "torch.distributed.distributed_c10d:_world",
    "",
    "a failed meeting has counted as a group, and newcomers would wait at another number",
    "trainer/distributed/group.py",
    attributes=("group_count",),
)
ABORT_GROUP = TABLE.hook(
    "torch.distributed.distributed_c10d:_abort_process_group",
    "(group=None)",
    "NCCL's own way out waits for a process that may be gone",
    "trainer/distributed/group.py",
)
FLATTEN = TABLE.hook(
    "torch._utils:_flatten_dense_tensors",
    "(tensors)",
    "small gradients are summed together",
    "trainer/distributed/group.py",
)
UNFLATTEN = TABLE.hook(
    "torch._utils:_unflatten_dense_tensors",
    "(flat, tensors)",
    "the way back from _flatten_dense_tensors",
    "trainer/distributed/group.py",
)
ARCHITECTURES = TABLE.hook(
    "torch._C:_cuda_getArchFlags",
    "",
    "torch.cuda.get_arch_list is empty where CUDA does not start, and there the doctor needs it",
    "trainer/doctor/cuda.py",
    cuda_only=True,
)

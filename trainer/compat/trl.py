"""Hooks into TRL."""

from __future__ import annotations

from autoft.hooks import Table

TABLE = Table("trl")

TABLE.hook(
    "trl.trainer.utils:add_fused_lm_head",
    "(model, temperature=1.0, cast_lm_head_to_fp32=False, outputs=('log_probs',))",
    "the fused head of the loss; it writes itself over the model's forward, which the engine puts back",
    "trainer/model/build.py",
)
USE_TRITON = TABLE.hook(
    "trl.trainer.utils:_use_triton",
    "(device)",
    "replaced during a rehearsal: the meta device has no Triton",
    "planner/kernels/dispatch.py",
)
FORWARD_TILE = TABLE.hook(
    "trl.kernels.chunked_logprob:_forward_tile",
    "(tile, tile_stride, targets, running_max, sum_exp, x_sum_exp, sq_sum_exp, z_sum, max_before_target, target_logit, "
    "vocab_start, n_cols, logit_scale, softcap, inv_t, HAS_SOFTCAP, HAS_ENTROPY, HAS_LOG_SUM_SQ_PROBS, "
    "HAS_MEAN_LOGITS, HAS_IS_TOP1, BLOCK_SIZE)",
    "replaced during a rehearsal: a Triton kernel takes no meta tensors",
    "planner/kernels/dispatch.py",
)
BACKWARD_TILE = TABLE.hook(
    "trl.kernels.chunked_logprob:_backward_tile",
    "(tile, tile_stride, targets, log_z, entropy, grad_logprobs, grad_entropy, vocab_start, n_cols, logit_scale, "
    "softcap, inv_t, HAS_SOFTCAP, HAS_LOGPROB_GRAD, HAS_ENTROPY_GRAD, BLOCK_SIZE)",
    "as _forward_tile",
    "planner/kernels/dispatch.py",
)
ADDMM = TABLE.hook(
    "trl.kernels.chunked_logprob:_addmm_fp32",
    "(acc, a, b)",
    "as _forward_tile",
    "planner/kernels/dispatch.py",
)
TABLE.hook(
    "trl:SFTTrainer",
    "(model, args=None, data_collator=None, train_dataset=None, eval_dataset=None, processing_class=None, "
    "compute_loss_func=None, compute_metrics=None, callbacks=None, optimizers=(None, None), "
    "optimizer_cls_and_kwargs=None, preprocess_logits_for_metrics=None, quantization_config=None, peft_config=None, "
    "formatting_func=None)",
    "the engine is one; it puts back the forward and the weights that the constructor changes",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "trl:SFTTrainer.compute_loss",
    "(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
    "overridden: our loss",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "trl:SFTTrainer.training_step",
    "(self, *args, **kwargs)",
    "overridden and called: forward and backward of a part of a micro-batch",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "trl:SFTTrainer._send_telemetry",
    "(self)",
    "overridden: nothing is sent",
    "trainer/loop/engine.py",
)
TABLE.hook(
    "trl.trainer.sft_trainer:DataCollatorForLanguageModeling",
    "(pad_token_id, padding_free=False, return_position_ids=False, pad_to_multiple_of=None, return_tensors='pt')",
    "pads the rows of a micro-batch",
    "trainer/objectives/batch.py",
)

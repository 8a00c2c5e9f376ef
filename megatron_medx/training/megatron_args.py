"""RunConfig to Megatron's arguments: the one file that speaks both vocabularies.

`settings` is the table, under Megatron's own argument names. `config/megatron_names.py` lists the same names for the
check that refuses them in the `megatron.` section. `command_line` turns settings into the words Megatron's own parser
reads, so that Megatron derives and validates everything else itself.
"""

import argparse
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_medx.config.checkpoint_folders import CHECKPOINTS, step_of
from megatron_medx.config.precision import FP8_RECIPES
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import ConfigError

LOGGING: dict[str, Any] = {
    "log_interval": 1,
    "tensorboard_dir": None,  # training/trackers/ tells it the same names as everywhere
    "log_throughput": False,  # Megatron's formula does not know the tower; metrics.jsonl has ours
}


def settings(
    config: RunConfig,
    *,
    folder: Path,
    resume: bool,
    start: Path | None = None,
    use_cuda: bool,
    use_transformer_engine: bool,
) -> dict[str, Any]:
    """Every Megatron argument that a run decides, by Megatron's name.

    Args:
        folder: the run folder.
        resume: continue from the newest checkpoint in the folder.
        start: folder of the tensors that a new run starts from (training/start.py); None for seeded weights.
        use_cuda: NCCL and fused kernels; otherwise gloo and plain torch.
        use_transformer_engine: which layers Megatron expects.
    """
    return (
        _network(config)
        | _mixture_of_experts(config, use_transformer_engine)
        | _grid(config)
        | _training(config)
        | _fp8(config)
        | _checkpoints(config, folder, resume, start)
        | LOGGING
        | _backend(use_cuda, use_transformer_engine)
    )


def _network(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_heads,
        "group_query_attention": True,
        "num_query_groups": model.num_kv_heads,
        "kv_channels": model.head_dim,
        "qk_layernorm": True,
        "swiglu": True,
        "add_bias_linear": False,
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.rms_norm_eps,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "position_embedding_type": "none",  # the model computes M-RoPE angles itself, Megatron's is the chunked kind
        "untie_embeddings_and_output_weights": not model.tie_embeddings,
        "seq_length": config.data.seq_len_tokens,
        "max_position_embeddings": config.data.seq_len_tokens,
        "tokenizer_type": "NullTokenizer",  # rows come tokenized; Megatron only wants a vocabulary size for its log
        "vocab_size": model.vocab_size - 1,  # NullTokenizer adds an end-of-document token
        "make_vocab_size_divisible_by": 1,
    }


def _mixture_of_experts(config: RunConfig, use_transformer_engine: bool) -> dict[str, Any]:
    model = config.model
    if not model.is_moe:
        return {}
    return {
        "num_experts": model.num_experts,
        "moe_router_topk": model.experts_per_token,
        "moe_ffn_hidden_size": model.expert_ffn_hidden_size,
        "moe_router_score_function": "softmax",
        "moe_router_pre_softmax": False,  # the chosen experts' weights sum to 1
        "moe_router_load_balancing_type": ["aux_loss" if model.router_aux_loss_coef else "none"],
        "moe_aux_loss_coeff": [model.router_aux_loss_coef],
        "moe_router_dtype": "fp32",
        "moe_token_dispatcher_type": "alltoall",  # ranks may hold rows of different lengths, which allgather forbids
        "moe_grouped_gemm": use_transformer_engine,
        "moe_permute_fusion": use_transformer_engine,
    }


def _grid(config: RunConfig) -> dict[str, Any]:
    grid = config.parallel
    virtual = grid.virtual_pipeline if grid.virtual_pipeline > 1 else None
    return {
        "tensor_model_parallel_size": grid.tensor,
        "sequence_parallel": grid.tensor > 1,
        "pipeline_model_parallel_size": grid.pipeline,
        "num_virtual_stages_per_pipeline_rank": virtual,
        "decoder_first_pipeline_num_layers": grid.first_stage_layers,
        "decoder_last_pipeline_num_layers": grid.last_stage_layers,
        "context_parallel_size": grid.context,
        "expert_model_parallel_size": grid.expert,
        "expert_tensor_parallel_size": 1,  # experts are narrow: they are dealt to ranks, never sliced
        "use_distributed_optimizer": True,
    }


def _training(config: RunConfig) -> dict[str, Any]:
    training, optimizer = config.training, config.optimizer
    bf16 = config.precision.dtype == "bf16"
    return {
        "seed": config.run.seed,
        "train_iters": training.steps,
        "micro_batch_size": 1,
        "global_batch_size": training.global_batch_rows,
        "calculate_per_token_loss": True,
        "bf16": bf16,
        "accumulate_allreduce_grads_in_fp32": bf16,
        "recompute_granularity": None if training.recompute == "none" else training.recompute,
        "recompute_method": "uniform" if training.recompute == "full" else None,
        "recompute_num_layers": 1 if training.recompute == "full" else None,
        "optimizer": "adam",
        **_schedule(config),
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "adam_eps": optimizer.eps,
        "clip_grad": optimizer.clip_grad_norm,
        "eval_iters": int(training.validate_every_steps > 0),  # whether; of each set the hook says how many
        "eval_interval": training.validate_every_steps or training.steps,
        "dataloader_type": "external",
        "rerun_mode": "disabled",
        "check_for_nan_in_loss_and_grad": False,  # bad_steps.py checks, with sample ids instead of a traceback
        "manual_gc": True,  # ranks collect garbage at the same steps, or each pause stalls all of them in turn
        "manual_gc_interval": 50,
        "exit_signal_handler": True,  # saves and leaves when survival_hooks.py says that a signal has come
    }


def _schedule(config: RunConfig) -> dict[str, Any]:
    """Step n of N is trained at the rate of n - 1 done steps: 0 first where there is a warm-up, never the final one."""
    optimizer = config.optimizer
    is_wsd = optimizer.schedule == "wsd"
    return {
        "lr": optimizer.lr,
        "min_lr": optimizer.min_lr,
        "lr_decay_style": "WSD" if is_wsd else optimizer.schedule,
        "lr_warmup_iters": config.warmup_steps,
        # 1 - sqrt(share of the decay done): the best of the shapes compared in Haegele et al. 2024, arXiv 2405.18392
        "lr_wsd_decay_style": "minus_sqrt" if is_wsd else None,
        "lr_wsd_decay_iters": config.decay_steps if is_wsd else None,
        "override_opt_param_scheduler": True,  # the configuration decides, also where a checkpoint recorded another
    }


def _fp8(config: RunConfig) -> dict[str, Any]:
    """Weights stay bf16, attention cores compute in bf16, and the output layer is not Transformer Engine's."""
    precision = config.precision
    if precision.fp8 == "none":
        return {}
    return {
        "fp8": FP8_RECIPES[precision.fp8].number_format,
        "fp8_recipe": precision.fp8,
        # Transformer Engine's own defaults for delayed scaling, read by it alone; Megatron's are 1 and most_recent.
        "fp8_amax_history_len": 1024,
        "fp8_amax_compute_algo": "max",
        "first_last_layers_bf16": precision.bf16_first_layers + precision.bf16_last_layers > 0,
        "num_layers_at_start_in_bf16": precision.bf16_first_layers,
        "num_layers_at_end_in_bf16": precision.bf16_last_layers,
    }


def _checkpoints(config: RunConfig, folder: Path, resume: bool, start: Path | None) -> dict[str, Any]:
    """Megatron leaves optimizer, step and data order out of a `pretrained_checkpoint`, and takes all from a `load`.

    A carried optimizer goes through `load`; hooks.py then sets step and data order back to 0.
    """
    checkpoints = folder / CHECKPOINTS
    carried = start if config.checkpoint.carry_optimizer else None
    load = checkpoints if resume else carried and carried.parent
    pretrained = None if start is None or carried else start.parent
    return {
        "save": str(checkpoints),
        "save_interval": config.checkpoint.every_steps,
        "load": load and str(load),
        "exit_on_missing_checkpoint": load is not None,
        "pretrained_checkpoint": pretrained and str(pretrained),
        "ckpt_step": start and step_of(start),
        "ckpt_format": "torch_dist",
        "dist_ckpt_optim_fully_reshardable": True,  # resume on any grid
        "async_save": config.checkpoint.async_save,
        # Megatron turns async_save off without the worker. Its other strategy needs nvidia-resiliency-ext 0.6.0, which
        # no package index has (0.4.1 is the newest, 2026-11).
        "use_persistent_ckpt_worker": config.checkpoint.async_save,
        "async_strategy": "mcore" if config.checkpoint.async_save else None,
        # Nothing draws random numbers after the initial weights: dropout is 0, the order of data is a function.
        "no_save_rng": True,
        "no_load_rng": True,
    }


def _backend(use_cuda: bool, use_transformer_engine: bool) -> dict[str, Any]:
    backend = {
        "transformer_impl": "transformer_engine" if use_transformer_engine else "local",
        "distributed_backend": "nccl" if use_cuda else "gloo",
        "use_cpu_initialization": True,  # initial weights are drawn on the CPU, equal on every grid
        "perform_initialization": False,  # models/initial_weights.py draws them
    }
    # Rotation is ours (models/row_rotary.py); Megatron's fused one restarts angles per segment. Fused gradient
    # accumulation is Apex's: the output layer is Megatron's own linear, also where layers are Transformer Engine's.
    backend |= {"apply_rope_fusion": False, "gradient_accumulation_fusion": False}
    if not use_transformer_engine:
        backend |= dict.fromkeys(("masked_softmax_fusion", "bias_dropout_fusion"), False)
        backend["no_persist_layer_norm"] = True
    return backend


def command_line(parser: argparse.ArgumentParser, arguments: Mapping[str, Any]) -> list[str]:
    """The words that make `parser` produce `arguments`.

    Args:
        parser: Megatron's own.
        arguments: values by destination name; None leaves the default.

    Raises:
        ConfigError: names that Megatron does not have, or a value that its switch cannot express.
    """
    actions: dict[str, list[argparse.Action]] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, []).append(action)
    unknown = [name for name in arguments if name not in actions]
    if unknown:
        near = difflib.get_close_matches(unknown[0], actions, n=1)
        raise ConfigError(
            f"megatron arguments that this megatron-core does not have: {', '.join(unknown)}",
            "names of Megatron's own arguments" + (f"; nearest to {unknown[0]}: {near[0]}" if near else ""),
            "correct or remove them in the megatron section",
        )
    words = []
    for name, value in arguments.items():
        words += _words(name, value, actions[name])
    return words


def _words(name: str, value: Any, actions: list[argparse.Action]) -> list[str]:
    """Option and values for one argument; several actions may share a destination (--x and --no-x)."""
    if value is None or any(_is_default(action, value) for action in actions):
        return []
    for action in actions:
        if isinstance(action, argparse.BooleanOptionalAction) and isinstance(value, bool):
            positive = next(option for option in action.option_strings if not option.startswith("--no-"))
            return [positive if value else positive.replace("--", "--no-", 1)]
        if action.nargs == 0 and action.const == value:
            return [action.option_strings[0]]
        if action.nargs != 0:
            values = value if isinstance(value, list | tuple) else [value]
            return [action.option_strings[0], *map(str, values)]
    raise ConfigError(
        f"megatron.{name}={value}",
        f"a value that Megatron's {actions[0].option_strings[0]} can express: {actions[0].const}",
        "change the value",
    )


def _is_default(action: argparse.Action, value: Any) -> bool:
    return action.default is not argparse.SUPPRESS and type(action.default) is type(value) and action.default == value

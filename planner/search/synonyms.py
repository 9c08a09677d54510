"""What to type for the settings and options of another trainer: each setting says itself what others call it."""

from __future__ import annotations

from autoft.settings import Field, settings_of
from autoft.trainer.job import Job
from autoft.trainer.recipe import Recipe

SETTINGS: dict[str, Field] = {**settings_of(Recipe), **settings_of(Job)}
TYPED = frozenset(name for name, field in SETTINGS.items() if field.setting.typed)  # what --set takes

# One of our command's options, {value} standing for what follows
_OPTIONS = {
    "--data {value}": "dataset datasets dataset_name dataset_path data_path data_file train_file train_data "
    "training_data train_dataset input input_file",
    "--eval-data {value}": "eval_dataset eval_file validation_file validation_data val_data val_file test_data "
    "test_file",
    "--output {value}": "output_dir out out_dir save_dir",
    "--seq-len {value}": SETTINGS["seq_len"].setting.elsewhere,
    "--vram {value}": "gpu_memory vram_gb max_vram",
    "--map {value}": "mapping columns dataset_text_field text_column",
}
# What a switch, or a switch with this value, comes to
_SWITCHES = {
    "--method qlora": "qlora load_in_4bit load_in_4_bit use_4bit 4bit bits=4 quantization_bit=4 quantization_bits=4",
    "--method qlora --set quant_type=int8": "load_in_8bit load_in_8_bit use_8bit 8bit bits=8 quantization_bit=8 int8",
    "--method lora": "lora use_lora use_peft peft bits=16",
    "--method full": "full full_finetune full_finetuning full_fine_tuning finetuning_type=full",
    "--set base_dtype=bfloat16": "bf16",
    "--set base_dtype=float16": "fp16",
    "--gpu cpu": "cpu no_cuda use_cpu device=cpu",
}


def _plain(name: str) -> str:
    return name.strip().strip("-").replace("-", "_").casefold()


def _by_name(table: dict[str, str]) -> dict[str, str]:
    return {name: ours for ours, names in table.items() for name in names.split()}


_SETTING_OF = _by_name({name: field.setting.elsewhere for name, field in SETTINGS.items()})
_OPTION_OF, _SWITCH_OF = _by_name(_OPTIONS), _by_name(_SWITCHES)


def setting_called(name: str) -> str | None:
    """Our setting that others call `name`, written with dashes or underscores; None if nobody does."""
    return _SETTING_OF.get(_plain(name))


def switch_called(name: str, value: str | None = None) -> str | None:
    """What to type for a switch of others, such as load_in_4bit or bits=4; None if nobody has it."""
    plain = _plain(name)
    return _SWITCH_OF.get(f"{plain}={(value or '').casefold()}") or _SWITCH_OF.get(plain)


def option_called(name: str, value: str | None) -> str | None:
    """What to type for --name VALUE of another trainer; None if it is not known."""
    plain, typed = _plain(name), value or "..."
    if "model" in (plain, _SETTING_OF.get(plain)):
        return f"{value or 'MODEL'} as an argument, without an option"
    switch = switch_called(plain, value)
    if switch is not None:
        return switch
    if plain in _OPTION_OF:
        return _OPTION_OF[plain].format(value=typed)
    setting = plain if plain in TYPED else _SETTING_OF.get(plain)
    if setting is None:
        return None
    usual = "true" if SETTINGS[setting].is_switch else "..."
    return f"--set {setting}={value or usual}"

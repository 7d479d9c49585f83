"""LoRA adapters: many on one base (`bank`), as PEFT files (`peft_format`), as versions on disk (`registry`)."""

"""What a step costs, in tokens computed: by it rows are laid into passes, and adapters into packs."""

PASS_TOKENS = 200
"""What a further forward and backward pass costs, in tokens computed: many small calls."""
ATTENTION_TOKENS = 1000
"""A token attends to so many others in the time that it takes through the linear layers."""

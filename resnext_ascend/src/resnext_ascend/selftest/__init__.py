"""``resnext-run ascend selftest``: what a first user of an Ascend runs, part by part, and sends back."""

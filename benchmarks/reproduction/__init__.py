"""The literature's figures, measured again: what the papers reached, what their protocol gives here, what ours gives.

python -m benchmarks.reproduction list | run ROW [--seeds 0 1] | table
"""

"""Read, check and write Triton model repositories: names, configurations, ensembles, locks and transactions.

This package opens no ONNX graph and starts no server. It imports none of the other packages.
"""

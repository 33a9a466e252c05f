"""What a Triton model repository is: names, configurations, ensembles, and the rules that need no graph."""

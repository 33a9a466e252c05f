"""The zoo: small networks trained on CIFAR-10, what is said of each, and how they do under transferred attacks."""

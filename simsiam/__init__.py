"""SimSiam on CIFAR-10: the library behind the stages. Importing this package imports nothing."""

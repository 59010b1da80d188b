"""The parts that models are composed of, the frozen language model among them."""

"""The gin bindings that a run reads, and the classes that inherit them."""

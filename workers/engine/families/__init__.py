"""The families of models: one file each, composing the stages. ``base`` says what a family gives to the ranks."""

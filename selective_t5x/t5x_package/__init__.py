"""What `import t5x` has beside the embedded engine: networks and gin files.

The folder t5x/ here has the layout of T5X's package, and the engine's package
looks for modules in it too, see `engine_finder`. So `t5x.examples.t5.network`
and `t5x/configs/runs/pretrain.gin` have T5X's names. The modules are thin: the
networks are the suite's own.
"""

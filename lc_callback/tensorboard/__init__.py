"""The Dynamics tab: a TensorBoard plugin for the curves, phases and transitions of runs.

TensorBoard finds it by its entry point. Nothing here imports torch, Lightning or another module of this library: a
plugin that cannot be imported stops TensorBoard, and one that imports torch delays its start by seconds.
"""

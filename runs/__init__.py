"""Recipes, and the tasks that eval.py --task=<name> imports by name."""

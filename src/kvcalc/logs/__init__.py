"""Logs that engines print, held against predictions: ``base`` and ``verdict``, and one module for each engine."""

"""Kubernetes and Istio objects to the model: pure functions, tested by golden files.

Objects come from people: a value of the wrong type is a finding with its field path, never an
exception, and never silently the more open reading.
"""

"""The steps that export the source model, one file per format: each opens it and writes a file.

Arguments: ``source`` as in the YAML, ``signature``, and ``options``, which the format's own export takes. Unkeyed:
``folder`` of the YAML. Upstream: ``source`` and ``samples``.
"""

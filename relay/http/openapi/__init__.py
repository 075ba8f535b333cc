"""The description of the HTTP door in OpenAPI 3.1, one module a resource, as its routes are.

    parts      the words that descriptions are made of
    document   all of them in one document

Every module has `PATHS` (path → method → operation) and `SCHEMAS` (name → schema). Tests hold the document and the
routes against each other, and every answer that a test sees against both.
"""

# SPDX-License-Identifier: Apache-2.0
"""Annotation files in XML, read without what a document may define for itself."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from florence2_jax.records.importers.places import AnnotationError, read_annotation


class _NoDoctype(ElementTree.TreeBuilder):
    """A tree builder that refuses document types: they define entities, and those may be bombs."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise AnnotationError("holds a document type")


def read_xml(path: Path) -> ElementTree.Element:
    """The `<annotation>` of a file.

    Raises:
        AnnotationError: if it cannot be read, is too long, or is no XML or of another kind.
    """
    data = read_annotation(path)
    try:
        root = ElementTree.fromstring(data, ElementTree.XMLParser(target=_NoDoctype()))
    except AnnotationError:
        raise
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise AnnotationError("is not XML") from error
    if root.tag != "annotation":
        raise AnnotationError("has no <annotation>")
    return root

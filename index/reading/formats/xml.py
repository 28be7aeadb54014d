"""XML of documents."""

from xml.etree import ElementTree

from index.reading.formats.extracted import Unreadable


def parse_xml(data: bytes) -> ElementTree.Element:
    """The root element of `data`. Python's parser limits the expansion of entities.

    Raises:
        Unreadable: if it is no XML.
    """
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise Unreadable(f"its XML is damaged ({error}).") from None


def local(element: ElementTree.Element) -> str:
    """The name of an element without its namespace; "" for a comment."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""

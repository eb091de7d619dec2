"""`make docs`: write the reference pages anew."""

from tests.docs.reference import PAGES


def main() -> None:
    """Write each page and say which of them changed."""
    for path, make in PAGES.items():
        text = make()
        changed = not path.exists() or path.read_text() != text
        path.write_text(text)
        print(f"{path.name}: {'written' if changed else 'as it was'}")


if __name__ == "__main__":
    main()

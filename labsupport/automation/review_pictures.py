"""Make the pictures of a review queue bare of all but their pixels, encrypt them for their owners, and decrypt them."""

from labsupport import images
from labsupport.access import Keys, NoKey, keys_for

PNG = b"\x89PNG"  # the first bytes of a PNG file


def bare(picture: bytes) -> bytes:
    """Return a JPEG or PNG with the same pixels, upright, and nothing else in it. Raises what `images.decode` raises."""
    return images.encode(images.decode(picture), "png" if picture.startswith(PNG) else "jpeg")


def sealed(keys: Keys | None, id: str, picture: bytes | None, owner: str | None) -> bytes | None:
    """Return the picture of an item as it is stored: encrypted if there is an owner.

    Raises what `Keys.encrypt` raises, `access.Forgotten` also for an item without a picture, and `access.NoKey` for the
    picture of an owner without `keys`.
    """
    if owner is None or (keys is None and picture is None):
        return picture
    keys = keys_for(keys, owner)
    content = keys.encrypt(owner, id, picture or b"")
    return None if picture is None else content


def opened(keys: Keys | None, id: str, picture: bytes | None, owner: str | None) -> bytes | None:
    """Return the picture of an item as it was before `sealed`.

    Raises what `Keys.decrypt` raises, and `access.NoKey` for an encrypted picture without `keys`.
    """
    if picture is None or owner is None or not Keys.encrypted(picture):
        return picture
    if keys is None:
        raise NoKey(f"the picture of {id} is encrypted: open this queue with keys=")
    return keys.decrypt(owner, id, picture)

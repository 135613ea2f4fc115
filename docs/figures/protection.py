"""Draw the diagrams of the lesson on security and privacy."""

import itertools

from draw import arrow, box, card, cylinder, lane, note


def attacks() -> str:
    """Draw a service, and where the attack of each section of the lesson enters."""
    request = box(40, 60, 130, 84, "Request", "1 file name", "2 size, 3 place", role="bad")
    way = box(40, 208, 130, 64, "The way", "7 listener", role="bad")
    server = box(262, 60, 136, 84, "Server", "4 token", "5 role, object")
    model = box(262, 196, 136, 84, "Model", "11 weights", "11 members")
    feedback = box(262, 310, 136, 64, "Feedback", "10 poison")
    data = cylinder(490, 56, 130, 92, "Data", "8 copy", "9 left bytes")
    trail = cylinder(490, 200, 130, 80, "Audit trail", "6 rows")
    parts = [
        *(lane(20, 16, 170, 378, "Outside"), lane(242, 16, 176, 378, "Service"), lane(470, 16, 170, 378, "Disk")),
        *(request, way, server, model, feedback, data, trail),
        arrow(request.bottom, way.top),
        arrow(way.right, (216, way.right[1]), (216, 124), server.at(0, 0.76)),
        arrow(server.right, data.left),
        arrow(server.at(1, 0.8), (444, server.at(1, 0.8)[1]), (444, trail.left[1]), trail.left),
        arrow(model.top, server.bottom, text="answers"),
        arrow(feedback.top, model.bottom),
    ]
    desc = (
        "A client's request carries a file name, a size and a place, and passes a listener on the way. The server checks "
        "the token, the role and the object. It writes data, which may be copied or leave bytes, and an audit trail, whose "
        "rows may be changed. Feedback from which the model learns may be poisoned. The weights of the model may be "
        "exchanged, and its answers may show who was in the training set. The numbers are those of the lesson's sections."
    )
    return card("Where the attacks enter", desc, 660, 410, *parts)


def hash_chain() -> str:
    """Draw a hash chain with a changed row, and the anchor that is kept elsewhere."""
    texts = [("Row 1", "Ana, 200"), ("Row 2", "changed"), ("Row 3", "Otto, 200")]
    rows = [
        box(40 + 144 * place, 60, 108, 64, *lines, role="bad" if place == 1 else "plain")
        for place, lines in enumerate(texts)
    ]
    hashes = [box(40 + 144 * place, 188, 108, 52, f"Hash {place + 1}") for place in range(3)]
    anchor = box(518, 182, 104, 64, "Anchor", "3, hash 3", role="accent")
    parts = [
        *(lane(20, 16, 436, 244, "The trail"), lane(500, 16, 140, 244, "Elsewhere"), *rows, *hashes, anchor),
        *(arrow(rows[place].bottom, hashes[place].top) for place in (0, 2)),
        arrow(rows[1].bottom, hashes[1].top, role="bad", dashed=True, text="no fit"),
        *(arrow(one.right, two.left) for one, two in itertools.pairwise(hashes)),
        arrow(hashes[2].right, anchor.left, role="accent"),
        note(
            20,
            276,
            620,
            "A changed row does not fit its hash.",
            "A cut tail fits: only the anchor shows that it is gone.",
        ),
    ]
    desc = (
        "Three rows of an audit trail, each with a hash. A hash is computed from its row and from the hash before it. Row 2 "
        "was changed, so it does not fit its hash. The anchor, kept elsewhere, holds the number and the hash of the newest "
        "row. If the tail is cut, the rows that are left fit, and only the anchor shows that rows are gone."
    )
    return card("A hash chain and its anchor", desc, 660, 352, *parts)

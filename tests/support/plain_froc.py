"""FROC in loops, over thresholds, images, detections and objects.

An image is a dict of boxes, scores and labels of its detections, objects and
object_labels, and ignored and ignored_labels.
"""


def area_of(box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def shared_by(box, other) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def plain_counts(image: dict, label, score_thr: float, spares_duplicates: bool):
    """(objects, found ones, false positives) of one image at one threshold.

    Args:
        label: of the class that counts; None: all.
    """
    owned = {}  # object: for each of its detections whether an ignored one covers it
    num_false = 0
    for i, box in enumerate(image['boxes']):
        own = image['labels'][i]
        if image['scores'][i] < score_thr or (label is not None and own != label):
            continue
        best, owner = 0.5, None
        for j, other in enumerate(image['objects']):
            if image['object_labels'][j] == own:
                shared = shared_by(box, other)
                iou = shared / (area_of(box) + area_of(other) - shared)
                if iou > best or (iou == best and owner is None):
                    best, owner = iou, j
        is_covered = any(
            image['ignored_labels'][j] == own
            and shared_by(box, o) / area_of(box) >= 0.5
            for j, o in enumerate(image['ignored'])
        )
        if owner is not None:
            owned.setdefault(owner, []).append((image['scores'][i], is_covered))
        elif not is_covered:
            num_false += 1
    for of_object in owned.values():
        # The hit is one of the highest score, and best one that must count.
        top = max(score for score, _ in of_object)
        hits = [pair for pair in of_object if pair[0] == top]
        of_object.remove(min(hits, key=lambda pair: pair[1]))
        if not spares_duplicates:
            num_false += sum(not is_covered for _, is_covered in of_object)
    num_objects = sum(label is None or own == label for own in image['object_labels'])
    return num_objects, len(owned), num_false


def plain_curve(images, label, spares_duplicates: bool) -> list[tuple]:
    """(false positives per image, sensitivity) from each score on, highest first."""
    thresholds = {float(score) for image in images for score in image['scores']}
    points = []
    for threshold in [2.0, *sorted(thresholds, reverse=True)]:
        objects = found = false = 0
        for image in images:
            counts = plain_counts(image, label, threshold, spares_duplicates)
            objects, found, false = (
                sum(pair) for pair in zip((objects, found, false), counts, strict=True)
            )
        points.append((false / len(images), found / objects))
    return points


def plain_sensitivity(points: list[tuple], rate: float) -> float:
    """The highest one at the rate, on straight lines between the points."""
    best = max(sensitivity for fp, sensitivity in points if fp <= rate)
    for (fp, low), (next_fp, high) in zip(points, points[1:], strict=False):
        if fp <= rate < next_fp:
            best = max(best, low + (high - low) * (rate - fp) / (next_fp - fp))
    return best

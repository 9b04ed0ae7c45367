# COCO 2014 with its 80 things, from image labels. Make labels, lists and evaluation
# masks with: python tools/prepare_data.py coco data/coco --masks
data_root = 'data/coco'
num_classes = 81

# Names as CLIP knows them, and what usually surrounds the objects (CLIP-ES; its list
# has one misspelling, 'sknowboard', which is corrected here).
class_names = [
    'person with clothes,people,human', 'bicycle', 'car', 'motorcycle', 'airplane',
    'bus', 'train', 'truck', 'boat', 'traffic light', 'fire hydrant', 'stop sign',
    'parking meter', 'bench', 'bird avian', 'cat', 'dog', 'horse', 'sheep', 'cow',
    'elephant', 'bear', 'zebra', 'giraffe', 'backpack,bag', 'umbrella,parasol',
    'handbag,purse', 'necktie', 'suitcase', 'frisbee', 'skis', 'snowboard',
    'sports ball', 'kite', 'baseball bat', 'glove', 'skateboard', 'surfboard',
    'tennis racket', 'bottle', 'wine glass', 'cup', 'fork', 'knife', 'dessertspoon',
    'bowl', 'banana', 'apple', 'sandwich', 'orange', 'broccoli', 'carrot', 'hot dog',
    'pizza', 'donut', 'cake', 'chair seat', 'couch', 'potted plant', 'bed',
    'dining table', 'toilet', 'tvmonitor screen', 'laptop', 'mouse',
    'remote control', 'keyboard', 'cell phone', 'microwave', 'oven', 'toaster',
    'sink', 'refrigerator', 'book', 'clock', 'vase', 'scissors', 'teddy bear',
    'hairdrier,blowdrier', 'toothbrush',
]  # fmt: skip
background_words = [
    'ground', 'land', 'grass', 'tree', 'building', 'wall', 'sky', 'lake', 'water',
    'river', 'sea', 'railway', 'railroad', 'helmet', 'cloud', 'house', 'mountain',
    'ocean', 'road', 'rock', 'street', 'valley', 'bridge',
]  # fmt: skip

dataset = dict(
    type='mmwsss.ImageLabelDataset',
    data_root=data_root,
    image_labels='image_labels.json',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
)
train_list = 'ImageSets/Segmentation/train.txt'
train_eval_list = 'ImageSets/Segmentation/train.txt'
val_list = 'ImageSets/Segmentation/val.txt'

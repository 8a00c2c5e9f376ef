"""What is kept of a DICOM header when all that could identify somebody goes: tables for `deidentify.py`.

An allow-list, the reverse of the Basic Application Level Confidentiality Profile (PS3.15 annex E), whose table E.1-1
lists what must go: of the attributes here it names ContrastBolusAgent and SOPInstanceUID alone (edition 2024b), and
both are replaced. A test holds the names against pydicom's dictionary.
"""

PIXELS = (
    "SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns PixelAspectRatio "
    "BitsAllocated BitsStored HighBit PixelRepresentation SmallestImagePixelValue LargestImagePixelValue "
    "PixelPaddingValue PixelPaddingRangeLimit LossyImageCompression LossyImageCompressionRatio "
    "LossyImageCompressionMethod ExtendedOffsetTable ExtendedOffsetTableLengths "
    "PixelData FloatPixelData DoubleFloatPixelData"
).split()
"""The pixels and how they are stored."""

DISPLAY = (
    "RescaleSlope RescaleIntercept RescaleType ModalityLUTSequence ModalityLUTType VOILUTSequence VOILUTFunction "
    "WindowCenter WindowWidth LUTDescriptor LUTData PresentationLUTShape "
    "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor "
    "BluePaletteColorLookupTableDescriptor AlphaPaletteColorLookupTableDescriptor "
    "RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData "
    "AlphaPaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData "
    "SegmentedAlphaPaletteColorLookupTableData"
).split()
"""From stored to shown values."""

PLACE = (
    "PixelSpacing ImagerPixelSpacing SpacingBetweenSlices SliceThickness SliceLocation ImagePositionPatient "
    "ImageOrientationPatient PatientOrientation PatientPosition"
).split()
"""Where the picture lies in the patient, mm."""

MEANING = (
    "SOPClassUID SOPInstanceUID Modality ImageType BodyPartExamined Laterality ImageLaterality FrameLaterality "
    "ViewPosition ContrastBolusAgent BurnedInAnnotation RecognizableVisualFeatures"
).split()
"""What the picture is of."""

SEQUENCES = (
    "ModalityLUTSequence VOILUTSequence SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence "
    "PixelMeasuresSequence PlanePositionSequence PlaneOrientationSequence FrameVOILUTSequence "
    "PixelValueTransformationSequence FrameAnatomySequence"
).split()
"""Kept with those of their contents that stand in these lists."""

KEPT = frozenset([*PIXELS, *DISPLAY, *PLACE, *MEANING, *SEQUENCES])

MODALITIES = frozenset(
    "BI BMD CR CT DG DX EPS ES FA GM IO IVOCT IVUS KER LEN LS MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OT PT PX "
    "RF RG RTDOSE RTIMAGE SEG SM TG US VA XA XC".split()
)
"""Modalities that have pictures (PS3.3 C.7.3.1.1.1)."""

BODY_PARTS = frozenset(
    "ABDOMEN ABDOMENPELVIS ADRENAL ANKLE AORTA ARM AXILLA BACK BLADDER BRAIN BREAST BRONCHUS BUTTOCK CALCANEUS CALF "
    "CAROTID CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS CLAVICLE COCCYX COLON CORNEA CSPINE CTSPINE "
    "DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE FEMUR FINGER FOOT FOREARM GALLBLADDER HAND HEAD HEADNECK "
    "HEART HIP HUMERUS ILEUM ILIUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LSPINE LSSPINE LUNG MANDIBLE MAXILLA "
    "MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE ORBIT OVARY PANCREAS PAROTID PATELLA "
    "PELVIS PENIS PHARYNX PROSTATE RADIUS RECTUM RIB SCAPULA SCLERA SCROTUM SHOULDER SKULL SPINE SPLEEN SSPINE STERNUM "
    "STOMACH TESTIS THIGH THORAX THUMB THYMUS THYROID TLSPINE TMJ TOE TONGUE TRACHEA TSPINE ULNA URETER URETHRA UTERUS "
    "VAGINA VULVA WHOLEBODY WRIST ZYGOMA".split()
)
"""Values of BodyPartExamined (PS3.16 annex L, stated from memory); the field is written by hand on some machines."""

VIEWS = frozenset("AP PA LL RL RLD LLD RLO LLO RAO LAO RPO LPO CC MLO ML LM LMO FB SIO XCC XCCL XCCM".split())
"""Values of ViewPosition (PS3.3 C.8.1.3 and C.8.11.7)."""

LATERALITIES = {"L": "left", "R": "right", "B": "both sides", "U": ""}

WORDS = {
    "Modality": MODALITIES,
    "BodyPartExamined": BODY_PARTS,
    "ViewPosition": VIEWS,
    "Laterality": frozenset(LATERALITIES),
    "ImageLaterality": frozenset(LATERALITIES),
    "FrameLaterality": frozenset(LATERALITIES),
    "ImageType": frozenset(
        "ORIGINAL DERIVED PRIMARY SECONDARY MIXED AXIAL LOCALIZER REFORMATTED VOLUME RESAMPLED".split()
    ),
    "PatientPosition": frozenset("HFP HFS HFDR HFDL FFDR FFDL FFP FFS LFP LFS RFP RFS AFDR AFDL PFDR PFDL".split()),
    "BurnedInAnnotation": frozenset(["YES", "NO"]),
    "RecognizableVisualFeatures": frozenset(["YES", "NO"]),
    "VOILUTFunction": frozenset(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    "PresentationLUTShape": frozenset(["IDENTITY", "INVERSE"]),
    "LossyImageCompression": frozenset(["00", "01"]),
    "LossyImageCompressionMethod": frozenset(
        "ISO_10918_1 ISO_14495_1 ISO_15444_1 ISO_15444_15 ISO_13818_2 ISO_14496_10 ISO_23008_2".split()
    ),
    "PhotometricInterpretation": frozenset(
        "MONOCHROME1,MONOCHROME2,PALETTE COLOR,RGB,YBR_FULL,YBR_FULL_422,YBR_PARTIAL_420,YBR_ICT,YBR_RCT,XYB".split(",")
    ),
}
"""Attributes of texts -> the words that are kept of them: anything may have been written there."""

UNITS = frozenset("OD HU US MGML Z_EFF ED EDW HU_MOD PCT".split())
"""Values of RescaleType and ModalityLUTType (PS3.3 C.11.1.1.2); another is replaced by US, DICOM's unspecified."""

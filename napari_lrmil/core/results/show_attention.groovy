/**
 * Shows attention of napari-lrmil as a heat map in QuPath 0.5 or later.
 * Research use only. Not a diagnosis.
 *
 * Open the slide and run the script (Automate > Script editor). If the slide has no tiles yet, it imports NAME.geojson
 * of the folder below, where NAME is the image's name without its ending. Without a folder it asks for the file.
 * For a whole project set the folder and use Run > Run for project: images without a file are left as they are.
 */

import qupath.fx.dialogs.FileChoosers
import qupath.lib.color.ColorMaps
import qupath.lib.gui.tools.MeasurementMapper

import static qupath.lib.gui.scripting.QPEx.*

// Folder of `napari-lrmil export --format qupath`, such as "/data/qupath". null asks for each file.
def folder = null

// What to show: "attention relative" or "teacher attention relative" (times the slide's average),
// "attention difference" (student minus teacher), "rank" (1, the highest attention, is the darkest) or
// "evidence <class>". null takes the heat map away.
def measurement = "attention relative"

// Ends of the colour scale. null: those of overlay.png, 0 to the 99th percentile, at least twice the average.
Double lowest = null
Double highest = null

def viewer = getCurrentViewer()
// Run for project: the viewer may show another image, or there is none. The import is then all that can be done.
boolean isShown = viewer != null && viewer.getImageData() == getCurrentImageData()
def tilesOfFile = { getDetectionObjects().findAll { it.isTile() && it.measurements.containsKey("attention relative") } }

def tiles = tilesOfFile()
if (tiles.isEmpty()) {
    def name = getCurrentServer().getMetadata().getName()
    def stem = name.contains(".") ? name.substring(0, name.lastIndexOf(".")) : name
    def file = folder == null ? null : new File(folder, stem + ".geojson")
    if (file == null && isShown)
        file = FileChoosers.promptForFile("attention.geojson of " + name,
                FileChoosers.createExtensionFilter("GeoJSON", "*.geojson"))
    if (file == null || !file.exists()) {
        println "No attention for " + name + ": " + (file == null ? "no file was chosen" : file.getPath() + " is missing")
        return
    }
    importObjectsFromFile(file.getPath())
    tiles = tilesOfFile()
}
if (tiles.isEmpty()) {
    println "The file has no tiles of napari-lrmil; choose attention.geojson, which predict or compare wrote"
    return
}

if (!isShown)
    return
def options = viewer.getOverlayOptions()
if (measurement == null) {
    options.resetMeasurementMapper()
    return
}
def shown = tiles.findAll { it.measurements.containsKey(measurement) }
if (shown.isEmpty()) {
    println "No patch has " + measurement + "; available: " + tiles[0].measurements.keySet().join(", ")
    return
}
def values = shown.collect { it.measurements[measurement] as double }.sort()
double percentile = values[(int) Math.round(0.99 * (values.size() - 1))]
boolean isRelative = measurement.endsWith("attention relative")
boolean isSigned = measurement == "attention difference" || measurement.startsWith("evidence")
double limit = isSigned ? Math.max(Math.abs(values.first()), Math.abs(values.last())) : percentile
double high = highest != null ? highest : (isRelative ? Math.max(2.0, percentile) : (isSigned ? limit : values.last()))
double low = lowest != null ? lowest : (isRelative ? 0.0 : (isSigned ? -limit : values.first()))

def colors = ColorMaps.getColorMaps().get("Viridis") ?: ColorMaps.getDefaultColorMap()
def mapper = new MeasurementMapper(colors, measurement, shown)
mapper.setDisplayMinValue(low)
mapper.setDisplayMaxValue(high)
options.setMeasurementMapper(mapper)
options.setShowDetections(true)
options.setFillDetections(true)
println measurement + ": " + shown.size() + " of " + tiles.size() + " patches, colours from " + low + " to " + high

// The soft masks of one image, read from their sheet, and how they are painted. Nothing here knows the page.

const DIMMED = 110 // of 255: how dark the rest of the picture gets

export class Scores {
    // `view` is what the node says of one image: phrases, colours, size, columns. `sheet` is its picture of masks.
    constructor(view, sheet) {
        const [width, height] = view.size
        Object.assign(this, { width, height, phrases: view.phrases })
        this.colours = view.colours.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)))
        const context = canvasOf(sheet.width, sheet.height).getContext("2d", { willReadFrequently: true })
        context.drawImage(sheet, 0, 0)
        this.masks = view.phrases.map((_, i) => {
            const left = (i % view.columns) * width
            const top = Math.floor(i / view.columns) * height
            const pixels = context.getImageData(left, top, width, height).data
            return Uint8Array.from({ length: width * height }, (_, j) => pixels[4 * j])
        })
    }

    // The score of every phrase, 0 to 1, at a place that is given in shares of width and height.
    at(x, y) {
        const column = Math.min(this.width - 1, Math.max(0, Math.floor(x * this.width)))
        const row = Math.min(this.height - 1, Math.max(0, Math.floor(y * this.height)))
        return this.masks.map((mask) => mask[row * this.width + column] / 255)
    }

    // The share of the picture where a phrase is above the threshold.
    share(phrase, threshold) {
        const mask = this.masks[phrase]
        let count = 0
        for (let j = 0; j < mask.length; j++) count += mask[j] > 255 * threshold
        return count / mask.length
    }

    // A canvas to lay over the picture: each pixel in the colour of the highest phrase above the threshold, of those
    // that are on, outlined, and dark where there is none.
    paint(on, threshold) {
        const { width, height, masks, colours } = this
        const winner = new Int16Array(width * height).fill(-1)
        const best = new Uint8Array(width * height)
        for (const phrase of on) {
            const mask = masks[phrase]
            for (let j = 0; j < mask.length; j++) {
                if (mask[j] > 255 * threshold && mask[j] > best[j]) {
                    best[j] = mask[j]
                    winner[j] = phrase
                }
            }
        }
        const canvas = canvasOf(width, height)
        const context = canvas.getContext("2d")
        const image = context.createImageData(width, height)
        for (let j = 0; j < winner.length; j++) {
            const mine = winner[j]
            if (mine < 0) {
                image.data[4 * j + 3] = DIMMED
                continue
            }
            const column = j % width
            const edge =
                (column > 0 && winner[j - 1] !== mine) ||
                (column < width - 1 && winner[j + 1] !== mine) ||
                (j >= width && winner[j - width] !== mine) ||
                (j < winner.length - width && winner[j + width] !== mine)
            image.data.set(colours[mine], 4 * j)
            image.data[4 * j + 3] = edge ? 255 : 110
        }
        context.putImageData(image, 0, 0)
        return canvas
    }
}

export function canvasOf(width, height) {
    return Object.assign(document.createElement("canvas"), { width, height })
}
